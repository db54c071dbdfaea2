"""A specification made complete without the service: the model and the datasets are looked at here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression import catalogue
from compression.anatomy.graph import read_inspection
from compression.loading.admission import PathSource, admit_model
from compression.loading.dataset_files import admit_dataset
from compression.prunable import check_prunable
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from compression.stages.load import model_files


def resolve_alone(data: Any, model: Path, datasets: Mapping[str, Path]) -> JobSpecification:
    """The resolved specification of a job on a folder and files. Raises CompressionError of what is wrong."""
    specification = parse(data)
    admission = admit_model(model_files(model))
    check_prunable(admission.format)
    facts = {name: admit_dataset(path.name, PathSource(path)) for name, path in datasets.items()}
    return resolve(specification, catalogue.load(), read_inspection(admission.inspection), facts)

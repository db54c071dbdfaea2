"""Models to resolve specifications against, and how a test resolves one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression import catalogue
from compression.anatomy import Inspection
from compression.errors import Fault, SpecificationInvalid
from compression.loading.admission import admit_model, folder_sources
from compression.loading.dataset_files import DatasetFacts
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from tests.tiny_models import tiny_bert, tiny_llama

DATASETS = {
    "text": DatasetFacts("text", 100, 1000, 1000, None),
    "other": DatasetFacts("text", 100, 1000, 1000, None),
    "small": DatasetFacts("text", 3, 10, 10, None),
    "named": DatasetFacts("labelled", 100, 1000, 1000, ["neg", "pos"]),
    "numbered": DatasetFacts("labelled", 100, 1000, 1000, [0, 1]),
    "misnamed": DatasetFacts("labelled", 100, 1000, 1000, ["neg", "pso"]),
    "outside": DatasetFacts("labelled", 100, 1000, 1000, [0, 1, 2]),
}


def inspections(root: Path) -> dict[str, Inspection]:
    """Inspections of tiny models of many kinds, by a short name."""

    def look(folder: Path) -> Inspection:
        return Inspection.from_json(admit_model(folder_sources(folder)).inspection)

    return {
        "decoder": look(tiny_llama(root / "a", layers=6)),
        "two": look(tiny_llama(root / "b", layers=2)),
        "one": look(tiny_llama(root / "c", layers=1)),
        "odd": look(tiny_llama(root / "d", hidden=36, ffn=60, heads=6, key_value_heads=2)),
        "mute": look(tiny_llama(root / "e", tokenizer=False)),
        "half": look(tiny_llama(root / "f", dtype="bfloat16")),
        "sixteen": look(tiny_llama(root / "g", dtype="float16")),
        "encoder": look(tiny_bert(root / "h")),
        "classifier": look(tiny_bert(root / "i", labels=["neg", "pos"])),
        "long": look(tiny_llama(root / "j", context=8192)),
        "tied": look(tiny_llama(root / "k", tied=True)),
    }


def attempt(inspection: Inspection, **changes: Any) -> JobSpecification:
    data = {
        "model": "mdl_1",
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": "text"},
    }
    data = {key: value for key, value in {**data, **changes}.items() if value is not None}
    found = resolve(parse(data), catalogue.load(), inspection, DATASETS)
    assert resolve(parse(found.to_json()), catalogue.load(), inspection, DATASETS) == found
    return found


def faults(inspection: Inspection, **changes: Any) -> list[Fault]:
    with pytest.raises(SpecificationInvalid) as caught:
        attempt(inspection, **changes)
    return caught.value.errors

"""A specification while it is being resolved, with the faults found so far. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compression.anatomy.inspection import Inspection
from compression.catalogue import Catalogue, Offer
from compression.errors import Fault
from compression.loading.dataset_files import DatasetFacts
from compression.specification import JobSpecification


class Draft:
    """What resolving works on: `specification` is replaced step by step, `faults` grows."""

    def __init__(
        self,
        specification: JobSpecification,
        recipe: Offer,
        catalogue: Catalogue,
        inspection: Inspection,
        datasets: Mapping[str, DatasetFacts],
    ) -> None:
        self.specification = specification
        self.recipe = recipe
        self.catalogue = catalogue
        self.inspection = inspection
        self.datasets = datasets
        self.given_options = frozenset(specification.options)
        self.faults: list[Fault] = []

    @property
    def layers(self) -> bool:
        """Whether whole layers are removed."""
        granularity = self.specification.structure.granularity or self.recipe.granularities[0]
        return granularity == "layer"

    def refuse(self, pointer: str, message: str, code: str) -> None:
        """Notes a fault."""
        self.faults.append(Fault(pointer, message, code))

    def replace(self, **values: Any) -> None:
        """Replaces top-level fields."""
        self.specification = self.specification.model_copy(update=values)

    def update(self, part: str, **values: Any) -> None:
        """Replaces fields of one part."""
        self.replace(**{part: getattr(self.specification, part).model_copy(update=values)})

    def dataset(self, pointer: str, name: str) -> DatasetFacts | None:
        """The facts of a dataset that the job reads; None, with a fault, if it or the tokenizer is
        missing."""
        facts = self.datasets.get(name)
        if facts is None:
            self.refuse(pointer, f"There is no dataset {name[:80]!r}.", "dataset_unknown")
        elif self.inspection.image is not None:
            self.refuse(
                pointer,
                "Datasets of images cannot be read yet: a model of images is pruned without data, by "
                "magnitude for instance.",
                "dataset_kind_unsupported",
            )
        elif facts.kind == "pairs" and self.inspection.task != "text2text-generation":
            self.refuse(
                pointer,
                f"{name[:80]} holds pairs of input and target, which only an encoder with a decoder "
                f"reads; this model's task is {self.inspection.task}: give it lines with 'text'.",
                "dataset_kind_unsupported",
            )
        elif not self.inspection.has_tokenizer:
            self.refuse(
                pointer,
                "The model came without tokenizer.json, so no text can be given to it; upload it with its "
                "tokenizer.",
                "tokenizer_missing",
            )
        return facts

    def length(self, pointer: str, length: int) -> None:
        """Notes a fault if sequences of this length do not fit the model."""
        if length > self.inspection.context:
            self.refuse(
                pointer,
                f"{length:,} tokens do not fit the model: its context is {self.inspection.context:,}.",
                "sequence_too_long",
            )

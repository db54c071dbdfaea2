"""A specification while it is being resolved, with the faults found so far. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compression.anatomy.graph import is_graph
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import Timing
from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
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
        timings: Sequence[Timing] = (),
    ) -> None:
        self.specification = specification
        self.recipe = recipe
        self.catalogue = catalogue
        self.inspection = inspection
        self.datasets = datasets
        self.timings = timings
        self.given_options = frozenset(specification.options)
        self.faults: list[Fault] = []

    @property
    def layers(self) -> bool:
        """Whether whole layers are removed."""
        granularity = self.specification.structure.granularity or self.recipe.granularities[0]
        return granularity == "layer"

    @property
    def structures(self) -> bool:
        """Whether neurons, heads or experts are removed."""
        return (self.specification.structure.granularity or "") in STRUCTURES

    @property
    def vocabulary(self) -> bool:
        """Whether rows of the vocabulary are removed."""
        return (self.specification.structure.granularity or self.recipe.granularities[0]) == VOCABULARY

    @property
    def ranks(self) -> bool:
        """Whether weights become products of two."""
        return (self.specification.structure.granularity or self.recipe.granularities[0]) == RANK

    @property
    def recoveries(self) -> dict[str, Mapping[str, Any]]:
        """The options schema of every recovery that this kind of model has, by name."""
        graph = is_graph(self.inspection)
        return self.catalogue.graph_recoveries if graph else self.catalogue.recoveries

    @property
    def data_kind(self) -> str:
        """What the model takes: images or text."""
        return "text" if self.inspection.image is None else "images"

    def no_length(self, pointer: str, length: int | None) -> None:
        """Notes a fault if a length is given for images, which all have the model's own."""
        if length is not None:
            self.refuse(
                pointer,
                "Leave it out: images are no sequences; their size is the model's.",
                "option_conflict",
            )

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
        """The facts of a dataset that the job reads; None, with a fault, if it is missing or of another kind
        than the model takes. A tokenizer that is missing is a fault too."""
        facts = self.datasets.get(name)
        if facts is None:
            self.refuse(pointer, f"There is no dataset {name[:80]!r}.", "dataset_unknown")
        elif (self.inspection.image is not None) != (facts.kind == "image"):
            wanted, kind = self.data_kind, "images" if facts.kind == "image" else "text"
            files = ".parquet, .npz, .zip or .tar" if self.inspection.image is not None else ".jsonl or .txt"
            self.refuse(
                pointer,
                f"{name[:80]} holds {kind}, but this model takes {wanted}: give a dataset of {wanted} "
                f"({files}).",
                "dataset_kind_unsupported",
            )
            return None
        elif facts.kind == "pairs" and self.inspection.task != "text2text-generation":
            self.refuse(
                pointer,
                f"{name[:80]} holds pairs of input and target, which only an encoder with a decoder "
                f"reads; this model's task is {self.inspection.task}: give it lines with 'text'.",
                "dataset_kind_unsupported",
            )
        elif self.inspection.image is None and not self.inspection.has_tokenizer:
            self.refuse(
                pointer,
                "The model came without tokenizer.json, so no text can be given to it; upload it with its "
                "tokenizer.",
                "tokenizer_missing",
            )
        return facts

    def length(self, pointer: str, length: int) -> None:
        """Notes a fault if sequences of this length do not fit the model; images have none."""
        if self.inspection.image is not None:
            self.no_length(pointer, length)
        elif length > self.inspection.context:
            self.refuse(
                pointer,
                f"{length:,} tokens do not fit the model: its context is {self.inspection.context:,}.",
                "sequence_too_long",
            )

"""What encoders have in common: embeddings, layers, perhaps a pooler and a head for classes. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compression.anatomy.families.base import TABLE, Config, Linear, Parts, Shapes, Sizes, under
from compression.anatomy.families.reader import ConfigReader, is_whole, shown

MAXIMUM_LABELS = 100_000
_POOLER = "the pooler: small, read by the head"
CLASSIFIER = "the output head: kept dense"


@dataclass(frozen=True)
class Encoder:
    """An encoder by the names inside its base model, which `base` (`bert.`) may precede.

    `tables` (the first is looked up by tokens) and `first` come before the list of `layers`, `pooler` after
    it. A classifier has `head` (by
    whole name, without the base) and `labels`. `needs_pooler` says whether the class cannot do without its
    pooler; `buffers` are what old checkpoints carry.
    """

    sizes: Sizes
    base: str
    layers: str
    linears: Mapping[str, Linear]
    others: Shapes
    tables: Shapes
    first: Shapes
    pooler: Shapes = field(default_factory=dict)
    needs_pooler: bool = False
    head: Shapes = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    buffers: tuple[str, ...] = ()

    def parts(self, names: Iterable[str]) -> Parts:
        """The tensors of the model, named as in a checkpoint with these names."""
        present = set(names)
        prefix = under(self.base, present)
        has_pooler = self.needs_pooler or any(prefix + name in present for name in self.pooler)
        pooler = {prefix + name: shape for name, shape in self.pooler.items()} if has_pooler else {}
        weights = {name: shape for name, shape in {**pooler, **self.head}.items() if len(shape) == 2}
        return Parts(
            sizes=self.sizes,
            layer_prefix=prefix + self.layers,
            linears=self.linears,
            others=self.others,
            before={prefix + name: shape for name, shape in {**self.tables, **self.first}.items()},
            after={**pooler, **self.head},
            kept={
                **dict.fromkeys((prefix + name for name in self.tables), TABLE),
                **{name: _POOLER if name in pooler else CLASSIFIER for name in weights},
            },
            buffers=tuple(prefix + name for name in self.buffers),
            labels=self.labels,
            has_pooler=has_pooler,
            sequence_macs=sum(rows * columns for rows, columns in weights.values()),
            vocabulary=tuple(prefix + name for name in list(self.tables)[:1]),
        )


def classes(config: Config) -> tuple[str, ...] | None:
    """The names of the classes in a rewritten config, None without them."""
    found = config.get("id2label")
    return None if found is None else tuple(found.values())


def dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a linear layer with a bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def labels(reader: ConfigReader, unique: bool = True) -> dict[str, Any]:
    """The classes of a classifier: `id2label` and `label2id`, complete and in order; where they need not be
    `unique`, `label2id` has the last class of a name."""
    problem = reader.config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        reader.refuse("problem_type", f"is {shown(problem)}; only single_label_classification is supported")
    given = reader.config.get("id2label")
    if given is None:
        count = reader.whole("num_labels", 1, MAXIMUM_LABELS, 2)
        names = [f"LABEL_{index}" for index in range(count)]
    else:
        names = _label_names(reader, given, unique)
    if len(names) < 2:
        reader.refuse("id2label", "names one class, which means regression; only classifiers are supported")
    found: dict[str, Any] = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if problem is not None:
        found["problem_type"] = problem
    return found


def _label_names(reader: ConfigReader, given: Any, unique: bool) -> list[str]:
    if not isinstance(given, dict) or not 1 <= len(given) <= MAXIMUM_LABELS:
        reader.refuse("id2label", f'is {shown(given)}; it must map "0", "1", ... to the names of the classes')
    names: list[str] = []
    for index in range(len(given)):
        name = given.get(str(index))
        if is_whole(name):
            name = str(name)
        if not isinstance(name, str) or not 1 <= len(name) <= 256:
            reader.refuse(
                "id2label", f'has no name for class "{index}" of {len(given)} (1 to 256 characters)'
            )
        names.append(name)
    if unique and len(set(names)) != len(names):
        reader.refuse("id2label", "gives two classes the same name")
    return names

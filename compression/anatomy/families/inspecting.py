"""From the answers of a family to an inspection. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compression.anatomy.inspection import Inspection, elements
from compression.anatomy.structures import GRANULARITIES, Kind, Structure
from compression.anatomy.varied import PACKAGED, RANK
from compression.anatomy.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from compression.anatomy.families.base import Family

_KINDS: tuple[Kind, ...] = ("neuron", "head", "hidden")


def inspection_of(
    family: Family, config: Mapping[str, Any], names: list[str], has_tokenizer: bool
) -> Inspection:
    """What can be cut in the model of this config whose files hold tensors of these names."""
    parts = family.parts(config, names)
    sizes, sites, lists = parts.sizes, parts.sites(), parts.lists()
    structures = family.structures(config, names)
    architecture = config["architectures"][0]
    whole_layers = parts.droppable and len(lists) == 1 and sizes.layers > 1
    outside = {**parts.before, **parts.after}
    row = sum(elements(outside[name]) // outside[name][0] for name in parts.vocabulary if name in outside)
    return Inspection(
        family=family.name,
        architecture=architecture,
        task=family.architectures[architecture].task,
        **{**vars(sizes), "layers": sum(layers.count for layers in lists)},
        tied_embeddings=parts.tied,
        has_tokenizer=has_tokenizer,
        labels=parts.labels,
        has_pooler=parts.has_pooler,
        layer_prefix=parts.layer_prefix,
        layer_parameters=sum(map(elements, lists[0].layer().values())),
        sites=sites,
        prunable_parameters=sum(site.size for site in sites),
        granularities=(
            "unstructured",
            "n:m",
            "block",
            *(["layer"] if whole_layers else []),
            *_of_units(structures),
            *([RANK] if architecture in PACKAGED else []),
            *([VOCABULARY] if has_tokenizer and parts.vocabulary else []),
        ),
        row_parameters=row,
        row_macs=parts.row_macs,
        structures=structures,
        structure_limits=tuple(_limits(family, config)),
        not_prunable=tuple({"name": name, "reason": reason} for name, reason in parts.kept.items()),
        token_macs=parts.token_macs,
        sequence_macs=parts.sequence_macs,
        layer_macs=parts.layer_macs,
        cross_layers=parts.cross_layers,
        window_macs=parts.window_macs,
        image=parts.image,
    )


def _of_units(structures: Sequence[Structure]) -> Iterator[str]:
    """The granularities that remove units of these kinds."""
    kinds = {structure.kind for structure in structures}
    # Where no single unit has elements of its own, no hidden channel has its own of a unit.
    uneven = {structure.kind for structure in structures if structure.whole}
    for name, parts in GRANULARITIES.items():
        if kinds.issuperset(parts) and not ("hidden" in parts and uneven.intersection(parts)):
            yield name


def _limits(family: Family, config: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    for kind in _KINDS:
        reason = family.why_not(kind, config)
        if reason:
            yield {"kind": kind, "reason": reason}

"""Models whose layers keep different numbers of units: which classes can hold them, and what they cost. No
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.structures import COLUMNS, ROWS, Structure

PREFIX = "PerLayer"
RANK = "rank"
"""The granularity of low-rank replacements, which the packaged code holds too."""
PACKAGE = "compression.export.per_layer.modeling_secateur"
PACKAGED: Mapping[str, str] = {
    "LlamaForCausalLM": "LlamaConfig",
    "MistralForCausalLM": "MistralConfig",
    "Qwen2ForCausalLM": "Qwen2Config",
    "Qwen3ForCausalLM": "Qwen3Config",
    "GemmaForCausalLM": "GemmaConfig",
    "Gemma2ForCausalLM": "Gemma2Config",
    "Gemma3ForCausalLM": "Gemma3TextConfig",
}
"""The classes that the packaged code (`export/per_layer`) builds layer by layer, and those of their
configs."""

PARTS = {"head": ("attention", "self_attn"), "neuron": ("mlp", "mlp")}
"""Of each kind: how `skip` of a layer's config calls the part without units, and its name in the module."""

Counts = Mapping[str, Sequence[int]]
"""By kind: how many units stay, layer by layer."""


def varied(inspection: Inspection, counts: Counts) -> Inspection:
    """The inspection of a model whose layers keep so many units each; `heads` and `ffn` are those of the
    widest layer that there was."""
    known: dict[str, Structure] = {one.kind: one for one in inspection.structures}
    gone = {
        kind: [(known[kind].count - kept) * known[kind].parameters for kept in layers]
        for kind, layers in counts.items()
    }
    total = sum(map(sum, gone.values()))
    sites = tuple(_site(site, inspection, counts) for site in inspection.sites)
    heads = counts.get("head")
    each = 0 if heads is None else inspection.heads // known["head"].count
    return replace(
        inspection,
        sites=sites,
        layer_heads=() if heads is None else tuple(kept * each for kept in heads),
        prunable_parameters=sum(site.size for site in sites),
        parameters=inspection.parameters - total,
        bytes=inspection.bytes - total * ITEM_SIZES[inspection.dtype],
    )


def _site(site: Site, inspection: Inspection, counts: Counts) -> Site:
    rows, columns = site.shape
    # Keys and values of a single head stay: all query heads read them.
    shared = inspection.key_value_heads == 1 and site.kind in ("key", "value")
    for one in inspection.structures:
        if one.kind not in counts:
            continue
        kept = counts[one.kind][site.layer]
        if site.kind == COLUMNS[one.kind]:
            columns = columns * kept // one.count
        elif site.kind in ROWS[one.kind] and not shared:
            rows = rows * kept // one.count
    return replace(site, shape=(rows, columns))

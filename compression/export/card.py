"""The model card of an artifact (``README.md``): what was done, what it cost, how to load it, what it is
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compression.anatomy.formats import GGUF
from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
from compression.evaluation import stock
from compression.specification import n_m

if TYPE_CHECKING:
    from compression.export.artifact import ArtifactInputs

_COST_ROWS = (
    ("parameters", "parameters"),
    ("nonzeros", "non-zeros"),
    ("bytes", "bytes of weights"),
)


def model_card(inputs: ArtifactInputs) -> str:
    """Markdown with the metadata block that model hubs read; it holds no time and nothing that was timed."""
    specification = inputs.specification
    recovery = (specification.get("recovery") or {}).get("method", "none")
    target = specification.get("target") or {}
    asked = ", ".join(f"{name} {value}" for name, value in target.items())
    granularity = (specification.get("structure") or {}).get("granularity") or "as the recipe has it"
    parts = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {inputs.task}",
        "tags:",
        "- pruned",
        "- secateur",
        "---",
        "",
        "# Pruned model",
        "",
        f"Made by Secateur with the recipe {inputs.recipe_title} (`{specification.get('recipe')}`).",
        "",
        f"- target: {asked}",
        f"- granularity: {granularity}",
        f"- recovery: {recovery}",
        f"- seed: {specification.get('seed', 0)}",
        "",
        *cost_table(inputs.figures.get("cost") or {}),
        *quality_table(inputs.figures.get("quality") or {}, "the evaluation data"),
        *quality_table(inputs.figures.get("domain_quality") or {}, "the domain's evaluation data"),
        *_loading(inputs),
        *_gguf(specification),
        "## What it is not",
        "",
        *_limits(granularity, bool(inputs.masks), inputs.code is not None),
        "",
        "`secateur/manifest.json` has the whole specification, the versions and the sha256 of every file.",
        "",
    ]
    return "\n".join(parts)


def _loading(inputs: ArtifactInputs) -> list[str]:
    loader = stock.loader_name(inputs.task, inputs.settings.get("architectures"))
    trusted = "" if inputs.code is None else ", trust_remote_code=True"
    lines = [
        "## Load it",
        "",
        "```python",
        f"from transformers import {loader}",
        "",
        f'model = {loader}.from_pretrained("PATH", dtype="auto"{trusted})',
        "```",
        "",
    ]
    if inputs.code is None:
        return lines
    return [
        *lines,
        *_told(inputs.code.name, inputs.settings),
        "",
    ]


def _told(code: str, settings: Mapping[str, Any]) -> list[str]:
    if "skip_weights" in settings:
        return [
            "Each norm reads the residual stream in a basis of its own (`skip_weights` in config.json).",
            f"`{code}` puts a linear map on every skip connection of the stock layers: read it first.",
        ]
    if "atoms_per_entry" in settings:
        return [
            "Some of its weights are dictionaries with sparse codes (`low_rank` in config.json says how many",
            f"atoms). `{code}` unpacks the codes in every pass and multiplies densely: read it first.",
        ]
    if "low_rank" in settings:
        return [
            "Some of its weights are products of two thin ones (`low_rank` in config.json has their ranks).",
            f"`{code}` puts two linear maps in the place of one in the stock layers: read it first.",
        ]
    return [
        "Its layers have widths of their own (`per_layer_config` in config.json).",
        f"`{code}` builds the stock layers with them and holds no arithmetic: read it first.",
    ]


def _gguf(specification: Mapping[str, Any]) -> list[str]:
    if GGUF not in ((specification.get("output") or {}).get("formats") or []):
        return []
    return [
        "For llama.cpp: `model.gguf` holds the same weights, as they are here; nothing is quantised.",
        "",
        "```sh",
        "llama-cli -m PATH/model.gguf",
        "```",
        "",
    ]


def cost_table(cost: Mapping[str, Any], macs: str = "MACs for one sequence") -> list[str]:
    """The counts of `cost` before and after, as Markdown."""
    dense, pruned = cost.get("dense"), cost.get("recovered") or cost.get("pruned")
    if not dense or not pruned:
        return []
    rows = ["| | dense | pruned | ratio |", "| --- | ---: | ---: | ---: |"]
    for key, title in (*_COST_ROWS, ("macs", macs)):
        if dense.get(key) and pruned.get(key) is not None:
            ratio = pruned[key] / dense[key]
            rows.append(f"| {title} | {dense[key]:,} | {pruned[key]:,} | {ratio:.3f} |")
    return ["## Cost", "", *rows, ""]


def quality_table(quality: Mapping[str, Any], where: str) -> list[str]:
    """The metrics of each state that was judged, as Markdown."""
    names = [name for name in ("dense", "pruned", "recovered") if quality.get(name)]
    metrics = sorted({metric for name in names for metric in quality[name]})
    if not metrics:
        return []
    rows = ["| metric | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for metric in metrics:
        cells = [quality[name].get(metric) for name in names]
        rows.append(f"| {metric} | " + " | ".join(_number(cell) for cell in cells) + " |")
    return [f"## Quality on {where}", "", *rows, ""]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _limits(granularity: str, masked: bool, coded: bool) -> list[str]:
    if granularity == RANK:
        return ["Its weights are products of two, and only the code beside it loads it."]
    if coded and granularity == HIDDEN:
        return ["It has weights on its skip connections, and only the code beside it loads it."]
    if coded:
        return ["Its layers are narrower, each by its own measure, and only the code beside it loads it."]
    if granularity in STRUCTURES and masked:
        return [
            "Its layers are narrower, each by its own measure; zeros bring them to one width, so it is no",
            "smaller or faster than its widest layer would make it.",
        ]
    if granularity == "expert":
        return ["It has fewer experts and needs less memory; a token takes as many of them as before."]
    if granularity == VOCABULARY:
        return [
            "It knows fewer tokens than the dense model: `secateur/vocabulary.json` lists which of its",
            "rows stay, by their new ids. Texts of another kind than it was trimmed for take more tokens.",
            "Use the tokenizer of this folder, not that of the dense model: ids differ.",
        ]
    if granularity in STRUCTURES:
        return ["Its layers are narrower, and it is smaller and faster in every runtime that loads it."]
    if not masked:
        return ["It has fewer layers and is smaller and faster in every runtime that loads it."]
    lines = [
        "Pruned weights are stored as zeros in dense tensors: the files are as large as before, and ordinary",
        "runtimes multiply by the zeros, so it is not faster there.",
        "`secateur/masks.safetensors` says which weights were removed, one bit a weight.",
    ]
    if n_m(granularity) == (2, 4):
        lines.append(
            "GPUs with 2:4 sparse tensor cores can use the pattern after a conversion of the weights."
        )
    return lines

"""The artifact of a job on a graph: the same kind of file, which channels stay, a card, a manifest.

Nothing in it depends on when, where or for which job it was written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compression.anatomy.graph import FORMAT
from compression.data_uses import Recovery
from compression.export.artifact import Artifact
from compression.export.card import cost_table, quality_table
from compression.export.files import MANIFEST_SCHEMA, file_entry, result_of, write_json
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.graph import Graph
from compression.graphs.pruning import Chosen
from compression.stages.graphs.files import store
from compression.stages.job import Loaded

COMPANIONS = ("config.json", "preprocessor_config.json")
UNITS = "secateur/units.json"


CHANNELS_GONE = (
    "Channels are gone, and it is smaller in every runtime; what that saves in time depends on shapes",
    "and device. `secateur/units.json` says which channels of the dense network stay.",
)


def write(
    loaded: Loaded, anatomy: Anatomy, units: Chosen, smaller: Graph, figures: Mapping[str, Any]
) -> Artifact:
    """Write the folder `work/artifact`; what an earlier attempt left there is written anew."""

    def beside(folder: Path) -> None:
        write_json(folder / UNITS, units_account(anatomy, units))

    return write_folder(loaded, smaller, figures, beside, CHANNELS_GONE)


def write_folder(
    loaded: Loaded,
    smaller: Graph,
    figures: Mapping[str, Any],
    beside: Callable[[Path], None],
    gone: Sequence[str],
    masks: Mapping[str, str] | None = None,
) -> Artifact:
    """The same; `beside` writes what tells of the removal, `gone` are lines of the card, `masks` is the
    manifest's entry for them."""
    folder = loaded.work / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "secateur").mkdir(parents=True)
    file, *data = loaded.admission.weights
    store(smaller, folder, file, data[0] if data else None)
    loaded.hook("mid_export")
    for name in COMPANIONS:
        if (loaded.folder / name).exists():
            shutil.copyfile(loaded.folder / name, folder / name)
    beside(folder)
    (folder / "README.md").write_text(card(loaded, smaller, file, figures, gone), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [file_entry(folder, path) for path in paths]
    manifest = _manifest(loaded, smaller, files, figures)
    manifest["structure"]["masks"] = masks
    path = folder / "secateur" / "manifest.json"
    write_json(path, manifest)
    return Artifact(folder, manifest, [*files, file_entry(folder, path)])


def stored_bytes(loaded: Loaded, folder: Path) -> int:
    """Bytes of the files of a folder that hold the graph and its tensors."""
    paths = [folder / name for name in loaded.admission.weights]
    return sum(path.stat().st_size for path in paths if path.exists())


def units_account(anatomy: Anatomy, units: Chosen) -> dict[str, Any]:
    """By group: the tensor and axis that make its units, and which places along it stay and go."""
    return {
        "schema": "secateur.graph-units/1",
        "groups": [_group(group, units.get(group.name, [])) for group in anatomy.groups],
    }


def _group(group: Group, gone: Sequence[int]) -> dict[str, Any]:
    site = next(group.producers(), group.sites[0])
    removed = np.zeros(group.units, dtype=np.bool_)
    removed[list(gone)] = True
    return {
        "name": group.name,
        "tensor": site.initializer,
        "axis": site.axis,
        "units": group.units,
        "kept": sorted(site.places[~removed].ravel().tolist()),
        "removed": sorted(site.places[removed].ravel().tolist()),
        "tensors": sorted({one.initializer for one in group.sites}),
    }


def _manifest(
    loaded: Loaded, smaller: Graph, files: list[dict[str, Any]], figures: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "schema": MANIFEST_SCHEMA,
        "format": FORMAT,
        "loader": {"library": "onnxruntime", "class": "InferenceSession", "code": None},
        "specification": result_of(loaded.specification.to_json()),
        "inputs": {"model": dict(loaded.files), "datasets": dict(loaded.datasets)},
        "structure": {
            "granularity": loaded.specification.structure.granularity,
            "masks": None,
            "layers_kept": None,
        },
        "graph": {
            "opset": smaller.opset,
            "inputs": [value.name for value in smaller.inputs],
            "outputs": [value.name for value in smaller.outputs],
        },
        "figures": figures,
        "versions": dict(loaded.versions),
        "gguf": None,
        "files": files,
    }


def card(loaded: Loaded, smaller: Graph, file: str, figures: Mapping[str, Any], gone: Sequence[str]) -> str:
    """Markdown; it holds no time and nothing that was timed. `gone` are lines on what it is not."""
    spec = loaded.specification
    inputs = ", ".join(f"`{value.name}` {_shape(value.shape)}" for value in smaller.inputs)
    outputs = ", ".join(f"`{value.name}` {_shape(value.shape)}" for value in smaller.outputs)
    parts = [
        "---",
        "library_name: onnxruntime",
        *([f"pipeline_tag: {loaded.admission.task}"] if loaded.admission.task != "other" else []),
        "tags:",
        "- pruned",
        "- secateur",
        "- onnx",
        "---",
        "",
        "# Pruned network",
        "",
        f"Made by Secateur with the recipe {loaded.recipe.title} (`{spec.recipe}`).",
        "",
        f"- target: {spec.target.kind} {spec.target.value}",
        f"- granularity: {spec.structure.granularity}",
        f"- recovery: {recovery_text(spec.recovery)}",
        f"- seed: {spec.seed}",
        f"- operator set: {smaller.opset}",
        f"- inputs: {inputs}",
        f"- outputs: {outputs}",
        "",
        *cost_table(figures["cost"], macs="MACs for one sample"),
        *quality_table(figures["quality"], "the evaluation data"),
        "## Run it",
        "",
        "```python",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("PATH/{file}", providers=["CPUExecutionProvider"])',
        "outputs = session.run(None, inputs)  # inputs: arrays by name",
        "```",
        "",
        "## What it is not",
        "",
        *gone,
        "",
        "`secateur/manifest.json` has the whole specification, the versions and the sha256 of every file.",
        "",
    ]
    return "\n".join(parts)


def recovery_text(recovery: Recovery) -> str:
    """What a job asked of a recovery, in words."""
    if recovery.method == "none":
        return "none"
    loss = recovery.options.get("loss")
    told = f", loss {loss}" if loss else ""
    return (
        f"{recovery.method}, {recovery.budget.steps:,} steps of {recovery.options['batch_size']} images{told}"
    )


def _shape(shape: Sequence[int | str | None] | None) -> str:
    sizes = ("?" if size is None else str(size) for size in shape or ())
    return f"[{', '.join(sizes)}]"

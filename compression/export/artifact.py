"""The artifact of a job: a model folder, with masks or kept layers, a model card and a manifest.

Nothing in it depends on when, where or for which job it was written: the same specification, seed and
inputs on the same kind of machine give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.formats import GGUF, SAFETENSORS
from compression.evaluation import stock
from compression.evaluation.types import TensorSource
from compression.export.card import model_card
from compression.export.files import MANIFEST_SCHEMA, file_entry, result_of, write_json
from compression.export.gguf import file as gguf_file
from compression.export.masks import FORMAT, write_masks
from compression.export.model import WrittenModel, write_model
from compression.export.writer import SHARD_BYTES


@dataclass(frozen=True)
class ArtifactInputs:
    """What an artifact is made of.

    ``source`` holds the final weights; ``settings`` is its admitted configuration; ``copy_from`` is the
    dense model's folder. ``kept`` are the source layers that stay (layer-drop; None: all) and ``layers``
    says the same for the manifest when the source has been renumbered already. ``code`` is the
    module that loads a model whose layers have widths of their own (None: stock classes do). ``units``
    are the neurons, heads and experts of the source that stay, by kind, layer by layer (hidden channels: one
    list for all layers); ``rows`` are those
    of the dense vocabulary that stay, in their new order (None: all). ``masks`` are keep-masks by weight
    name, empty without. ``specification`` is the resolved one as JSON; ``model_files`` and ``datasets``
    map names to sha256; ``figures`` are those of the card (``cost`` and ``quality``, each with
    dense, pruned, recovered), and must not hold anything that was timed; ``versions`` names the software.
    """

    folder: Path
    source: TensorSource
    settings: Mapping[str, Any]
    copy_from: Path
    task: str
    specification: Mapping[str, Any]
    model_files: Mapping[str, str]
    datasets: Mapping[str, str]
    versions: Mapping[str, str]
    figures: Mapping[str, Any]
    recipe_title: str
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Sequence[int] | None = None
    layers: Sequence[int] | None = None
    units: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    code: Path | None = None
    rows: Sequence[int] | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD_BYTES
    after_file: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Artifact:
    """What was written: the folder, the manifest, and every file as {path, bytes, sha256}. `gguf` says of
    the GGUF file its {path, bytes, tensors, remarks}."""

    folder: Path
    manifest: dict[str, Any]
    files: list[dict[str, Any]]
    gguf: Mapping[str, Any] | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self.files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return weight_bytes(self.folder)


def weight_bytes(folder: Path) -> int:
    """Bytes of the ``*.safetensors`` files directly in ``folder``."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write_artifact(inputs: ArtifactInputs) -> Artifact:
    """Write the folder. Raises FileExistsError when there is something in it already."""
    folder = inputs.folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"the artifact's folder {folder.name} is not empty")
    write_model(
        folder,
        inputs.source,
        inputs.settings,
        inputs.copy_from,
        kept=inputs.kept,
        dtype=inputs.dtype,
        shard_bytes=inputs.shard_bytes,
        after_file=inputs.after_file,
    )
    if inputs.code is not None:
        shutil.copyfile(inputs.code, folder / inputs.code.name)
    extra = folder / "secateur"
    extra.mkdir(exist_ok=True)
    layers = inputs.layers if inputs.layers is not None else inputs.kept
    if inputs.masks:
        write_masks(extra / "masks.safetensors", inputs.masks)
    if layers is not None:
        write_json(extra / "kept.json", {"schema": "secateur.kept/1", "layers": list(layers)})
    if inputs.units:
        write_json(extra / "units.json", {"schema": "secateur.units/1", "units": dict(inputs.units)})
    if inputs.rows is not None:
        write_json(extra / "vocabulary.json", {"schema": "secateur.vocabulary/1", "rows": list(inputs.rows)})
    gguf = _write_gguf(inputs) if GGUF in _formats(inputs) else None
    (folder / "README.md").write_text(model_card(inputs), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [file_entry(folder, path) for path in paths]
    manifest = _manifest(inputs, layers, files, gguf)
    write_json(extra / "manifest.json", manifest)
    return Artifact(folder, manifest, [*files, file_entry(folder, extra / "manifest.json")], gguf)


def _formats(inputs: ArtifactInputs) -> Sequence[str]:
    found: Sequence[str] = (inputs.specification.get("output") or {}).get("formats") or (SAFETENSORS,)
    return found


def _write_gguf(inputs: ArtifactInputs) -> dict[str, Any]:
    """Write the GGUF file beside the safetensors, from what they were written from."""
    path = inputs.folder / gguf_file.NAME
    config = json.loads((inputs.folder / "config.json").read_text(encoding="utf-8"))
    written = WrittenModel(inputs.source, inputs.kept, inputs.dtype)
    plan = gguf_file.plan(config, written, inputs.folder)
    gguf_file.write(path, plan, written)
    return {
        "path": path.name,
        "bytes": path.stat().st_size,
        "tensors": len(plan.items) + (plan.factors is not None),
        "remarks": plan.remarks,
    }


def _manifest(
    inputs: ArtifactInputs,
    layers: Sequence[int] | None,
    files: list[dict[str, Any]],
    gguf: Mapping[str, Any] | None,
) -> dict[str, Any]:
    specification = result_of(inputs.specification)
    return {
        "schema": MANIFEST_SCHEMA,
        "format": "transformers",
        "loader": {
            "library": "transformers",
            "class": stock.loader_name(inputs.task, inputs.settings.get("architectures")),
            "code": None if inputs.code is None else inputs.code.name,
        },
        "specification": specification,
        "inputs": {"model": dict(inputs.model_files), "datasets": dict(inputs.datasets)},
        "structure": {
            "granularity": (inputs.specification.get("structure") or {}).get("granularity"),
            "masks": {"path": "secateur/masks.safetensors", "format": FORMAT} if inputs.masks else None,
            "layers_kept": None if layers is None else list(layers),
        },
        "figures": inputs.figures,
        "versions": dict(inputs.versions),
        "gguf": None if gguf is None else dict(gguf),
        "files": files,
    }

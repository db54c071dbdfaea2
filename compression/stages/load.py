"""Load and inspect: admission, hashes, the key of the finished steps, and whether every weight is a
number.
"""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from compression.anatomy.formats import GGUF
from compression.anatomy.graph import FORMAT, read_inspection
from compression.anatomy.vocabulary import VOCABULARY
from compression.checkpoint import Hook, Store, file_digest, job_key
from compression.device import prepare_device
from compression.errors import TensorsMismatch, WeightsNotFinite
from compression.export.gguf import file as gguf_file
from compression.loading.admission import Admission, FileSource, PathSource, admit_model
from compression.loading.weights import WeightReader
from compression.prunable import check_prunable
from compression.recipes import recipes
from compression.stages.job import Loaded, Observer, Request
from compression.stages.vocabulary import check_vocabulary

OURS = "secateur"


def load(request: Request, observer: Observer, hook: Hook) -> Loaded:
    """Admit the model, make the folder that everything else reads, and open the store of finished steps.

    Raises ModelRejected, FormatNotPrunable, UnknownEntry for the recipe, DeviceUnavailable.
    """
    device = prepare_device(request.device, request.threads)
    recipe = recipes[request.specification.recipe]
    sources = model_files(request.model)
    admission = admit_model(sources)
    check_prunable(admission.format)
    folder = request.work / "model"
    make_view(folder, request.model, sources, admission)
    files = {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for number, name in enumerate(names):
        files[name] = file_digest(folder / name)
        observer.progress(number + 1, len(names))
        hook("mid_load")
    datasets = {name: file_digest(path) for name, path in sorted(request.datasets.items())}
    versions = software() | (graph_software() if admission.format == FORMAT else {})
    key = job_key(result_specification(request), {**files, **datasets}, {**versions, "device": device.type})
    return Loaded(
        request=request,
        observer=observer,
        hook=hook,
        device=device,
        folder=folder,
        admission=admission,
        inspection=read_inspection(admission.inspection),
        recipe=recipe,
        files=files,
        datasets=datasets,
        versions=versions,
        store=Store(request.work / "checkpoints", key, observer, hook),
    )


def result_specification(request: Request) -> dict[str, object]:
    """The part of the specification that the result depends on, as JSON."""
    data = request.specification.to_json()
    return {
        name: part for name, part in data.items() if name not in ("limits", "priority", "metadata", "queue")
    }


def graph_software() -> dict[str, str]:
    """The same that results of graphs alone depend on."""
    return {name: version(name) for name in ("numpy", "onnx", "onnxruntime")}


def software() -> dict[str, str]:
    """Versions that results depend on."""
    return {
        "secateur": version("secateur"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "safetensors": version("safetensors"),
        "tokenizers": version("tokenizers"),
        "gguf": version("gguf"),
    }


def model_files(folder: Path) -> dict[str, FileSource]:
    """The files under a model's folder by relative path. Links are followed: the caller laid them out."""
    return {
        path.relative_to(folder).as_posix(): PathSource(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and OURS not in path.relative_to(folder).parts[:1]
    }


def make_view(folder: Path, model: Path, sources: dict[str, FileSource], admission: Admission) -> None:
    """A folder with the admitted model: settings as rewritten, everything else a link to where it lies."""
    if folder.exists():
        shutil.rmtree(folder)
    for name in sources:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in admission.rewritten:
            target.write_bytes(admission.rewritten[name])
        else:
            target.symlink_to((model / name).resolve())


def check_weights(loaded: Loaded) -> None:
    """Look at the values, which headers do not show; where tokens go, at the tokenizer. Raises
    WeightsNotFinite, TensorsMismatch, FormatImpossible, TokenizerInvalid, TargetUnreachable."""
    check_formats(loaded)
    if loaded.specification.structure.granularity == VOCABULARY:
        check_vocabulary(loaded)
    check_finite(loaded)
    check_tied(loaded)


def check_formats(loaded: Loaded) -> None:
    """Refuse, before anything is computed, a format that the model or its tokenizer cannot be written in.

    The gateway has looked at config.json; it does not read vocabularies. Raises FormatImpossible.
    """
    if GGUF in loaded.specification.output.formats:
        gguf_file.check(loaded.admission.config, loaded.folder)


def check_finite(loaded: Loaded) -> dict[str, int]:
    """Read every weight once; gives the number of zeros by tensor.

    Raises WeightsNotFinite that names the tensor and the position of the first NaN or infinity.
    """
    reader = WeightReader(loaded.folder)
    names = reader.names()
    zeros: dict[str, int] = {}
    for number, name in enumerate(names):
        zeros[name] = 0
        for start, rows in reader.rows(name):
            if rows.is_floating_point() and not bool(torch.isfinite(rows).all()):
                place = (~torch.isfinite(rows)).nonzero()[0].tolist()
                place[0] += start
                value = float(rows[tuple([place[0] - start, *place[1:]])])
                where = ", ".join(str(index) for index in place)
                raise WeightsNotFinite(f"the weight {name}[{where}] is {value}", pointer=name)
            zeros[name] += int((rows == 0).sum())
        loaded.observer.progress(number + 1, len(names))
    return zeros


def check_tied(loaded: Loaded) -> None:
    """Refuse a model that calls its head (or an embedding table) tied but stores another one.

    The stock loader would untie it, and figures that count it once would be wrong. Only the values show it,
    not the headers. Raises TensorsMismatch.
    """
    reader = WeightReader(loaded.folder)
    table, *copies = loaded.inspection.tied or ("",)
    for copy in (name for name in copies if name in reader and table in reader):
        for (start, embeddings), (_, head) in zip(reader.rows(table), reader.rows(copy), strict=True):
            if not torch.equal(embeddings, head):
                row = start + int((embeddings != head).any(dim=1).nonzero()[0])
                raise TensorsMismatch(
                    f"config.json says tie_word_embeddings, but row {row} of {copy} differs from {table}: "
                    f"set tie_word_embeddings to false, or leave {copy} out of the file.",
                    pointer=copy,
                )

"""Which files of a local folder make up a model, and what is known about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import InputInvalid

CHUNK = 1 << 20

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "preprocessor_config.json",
)
GRAPH_FILES = (
    "*.onnx",
    "*.data",
    "*_data",
    "*.weights",
    "config.json",
    "preprocessor_config.json",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class LocalFile:
    """A file to send: where it lies, its path on the service, its length in bytes, its sha256 in hex."""

    source: Path
    path: str
    bytes: int
    sha256: str


def model_files(folder: Path) -> list[Path]:
    """The files of a transformers folder that a service needs, or those of an ONNX model: a file, with the
    data
    whose names begin with its own beside it, or a folder. In a stable order; links are followed.

    Raises: InputInvalid when the folder is missing, has no weights, or has them only as pickles.
    """
    if folder.suffix == ".onnx" and folder.is_file():
        return [folder, *_data_of(folder)]
    if not folder.exists():
        raise InputInvalid(f"There is no folder {folder}.")
    if not folder.is_dir():
        if folder.suffix == ".pt2":
            raise InputInvalid(
                f"{folder} is a torch.export program, which a service never opens, because reading one "
                f"runs code. "
                f"Convert it on this machine first: secateur convert {folder} --out model.onnx"
            )
        raise InputInvalid(
            f"{folder} is a file; a model is a folder with config.json and *.safetensors, or an ONNX file."
        )
    found = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    names = {path.name for path in found}
    if not any(name.endswith(".safetensors") for name in names):
        if any(folder.glob("*.onnx")):
            return sorted(
                {path for pattern in GRAPH_FILES for path in folder.glob(pattern) if path.is_file()}
            )
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise InputInvalid(
                f"{folder} has its weights as pickles ({', '.join(pickles[:3])}), which a service never "
                f"opens. Convert them on this machine first: secateur convert {folder} OUT"
            )
        raise InputInvalid(f"{folder} has no *.safetensors file, so there are no weights to compress.")
    if "config.json" not in names:
        raise InputInvalid(f"{folder} has no config.json, which says what architecture the weights are.")
    return found


def _data_of(file: Path) -> list[Path]:
    """The files beside an ONNX file that are named after it: model.onnx.data, model.onnx_data, model.data."""
    names = (file.name + ".data", file.name + "_data", file.stem + ".data")
    return sorted(path for path in (file.with_name(name) for name in names) if path.is_file())


def describe(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[LocalFile]:
    """Read the files once for their sha256. `progress(done, total)` counts bytes.

    Raises: InputInvalid for an unreadable or empty file.
    """
    try:
        total = sum(path.stat().st_size for path in paths)
        done = 0
        described = []
        for path in paths:
            size = path.stat().st_size
            if size == 0:
                raise InputInvalid(f"{path} is empty.")
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress:
                        progress(min(done, total), total)
            described.append(LocalFile(path, path.name, size, digest.hexdigest()))
    except OSError as error:
        raise InputInvalid(
            f"{error.filename or 'A file'} cannot be read: {error.strerror or error}"
        ) from error
    return described

"""Which files a model may consist of, by name and by content. No torch."""

from __future__ import annotations

import re
from typing import NoReturn

from compression.errors import FileRefused, PickleRefused
from compression.loading.sources import Files, FileSource

MAXIMUM_FILES = 2_000
MAXIMUM_PASSIVE = 64 << 20

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}|\.gitattributes|\.gitignore", re.ASCII)
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.ASCII | re.IGNORECASE)
_PASSIVE = re.compile(
    r".*\.(?:json|jsonl|txt|md|jinja|model|yaml|yml|rst|png|jpg|svg)|.*LICENSE[^/]*|.*NOTICE[^/]*|.*USE_POLICY[^/]*"
    r"|(?:.*/)?\.git(?:attributes|ignore)|.*README[^/]*",
    re.ASCII | re.IGNORECASE,
)
_PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".npy",
    ".npz",
    ".msgpack",
    ".h5",
    ".keras",
)
_CODE = (".py", ".pyc", ".so", ".dll", ".sh", ".exe", ".js", ".whl")
_OTHERS = {
    ".pt2": "torch.export programs are not taken in, because reading them runs code (Python's eval and "
    "pickles). Run `secateur convert` on your own machine, which writes ONNX, and upload that",
    ".gguf": "GGUF files are not taken in",
    ".zip": "archives are not taken in; upload the files in them",
    ".tar": "archives are not taken in; upload the files in them",
    ".gz": "archives are not taken in; upload the files in them",
}
_PROGRAM = ".pt2"
_MAGIC = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"GGUF", "a GGUF file"),
)
FORBIDDEN_ENDINGS = (*_PICKLES, *_CODE, *_OTHERS, ".onnx", ".safetensors", ".json")
"""Of files that are no plain numbers, whatever a model says of them."""
# Protocols 0 and 1 are text, so this is asked of files only that should be binary.
_OLD_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\((?:lp|dp|t|c)|[\]}]q")
_CONVERT = (
    "Pickled files are never opened here, because opening them runs code. Run `secateur convert` on your "
    "own machine, which writes safetensors, and upload those"
)


def check_files(files: Files) -> None:
    """Checks names, kinds and first bytes of all files. Raises FileRefused or PickleRefused for the first
    bad one."""
    check_names(files)
    check_kinds(files)


def check_kinds(files: Files) -> None:
    """Checks kinds and first bytes of files. Raises FileRefused or PickleRefused for the first bad one."""
    for path, source in files.items():
        _check_kind(path, source)


def check_names(files: Files) -> None:
    """Checks the names of all files of a model, and that there are some. Raises FileRefused for the first bad
    one."""
    if not files:
        raise FileRefused(
            "No files: a model needs config.json, its safetensors files and its tokenizer, or one ONNX file."
        )
    if len(files) > MAXIMUM_FILES:
        raise FileRefused(f"{len(files):,} files, more than the {MAXIMUM_FILES:,} allowed.")
    folded: dict[str, str] = {}
    for path in files:
        check_path(path)
        twin = folded.setdefault(path.lower(), path)
        if twin != path:
            raise FileRefused(
                f"{path!r} and {twin!r} differ only in upper and lower case; rename one.", pointer=path
            )
    for path in files:
        parents = path.lower().split("/")[:-1]
        for depth in range(len(parents)):
            folder = "/".join(parents[: depth + 1])
            if folder in folded:
                raise FileRefused(f"{folded[folder]!r} is both a file and a folder.", pointer=path)


def check_path(path: str) -> None:
    """Checks the name of a file inside a model: plain ASCII segments, no way out. Raises FileRefused."""
    shown = repr(path[:120])
    if len(path) > 240:
        raise FileRefused(f"{shown}: the name is longer than 240 characters.", pointer=path[:120])
    segments = path.split("/")
    if len(segments) > 8:
        raise FileRefused(f"{shown}: more than 8 folders deep.", pointer=path)
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or _DEVICE.fullmatch(segment) or segment.endswith("."):
            raise FileRefused(
                f"{shown} is no valid name for a file: use letters, digits, '_', '.', '-' "
                "and '/' between folders, not at the beginning, and no '..'.",
                pointer=path[:120],
            )


def is_pickle(data: bytes) -> bool:
    """Whether bytes begin like a pickle of protocol 2 to 5."""
    return len(data) >= 2 and data[0] == 0x80 and 2 <= data[1] <= 5


def _check_kind(path: str, source: FileSource) -> None:
    head = source.read(0, min(64, source.size))
    name = path.lower()

    def pickle(what: str) -> NoReturn:
        raise PickleRefused(f"{path}: {what}. {_CONVERT}.", pointer=path)

    if is_pickle(head) or (name.endswith(".safetensors") and _OLD_PICKLE.match(head)):
        pickle("this is a pickle, whatever its name says")
    if name.endswith(_PICKLES):
        pickle("this kind of file is refused")
    if name.endswith(_PROGRAM):
        raise FileRefused(f"{path}: {_OTHERS[_PROGRAM]}.", pointer=path)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            if magic.startswith(b"PK"):
                pickle(f"this is {what}")
            raise FileRefused(f"{path}: this is {what}, which is not taken in; remove it.", pointer=path)
    if name.endswith(_CODE):
        raise FileRefused(f"{path}: code is never taken in; remove it.", pointer=path)
    for ending, why in _OTHERS.items():
        if name.endswith(ending):
            raise FileRefused(f"{path}: {why}.", pointer=path)
    if name.endswith((".safetensors", ".onnx")):
        return
    if not _PASSIVE.fullmatch(path):
        raise FileRefused(
            f"{path}: not a kind of file that belongs to a model "
            "(safetensors, JSON, tokenizer and text files); remove it.",
            pointer=path,
        )
    if source.size > MAXIMUM_PASSIVE:
        raise FileRefused(
            f"{path}: {source.size:,} bytes, more than the {MAXIMUM_PASSIVE:,} allowed "
            "for a file that holds no weights.",
            pointer=path,
        )

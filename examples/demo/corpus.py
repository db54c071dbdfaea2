"""Text that every Python installation carries: the sources of its standard library, split by file."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
}
"""Tests repeat themselves; encodings and pydoc_data are tables, not text."""

SHARES = (("train", 80), ("validation", 90), ("calibration", 100))


def documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every source file below the standard library's folder, in order, no text twice."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if LEFT_OUT.intersection(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) >= 200 and text not in seen:
            seen.add(text)
            yield name.as_posix(), text


def part(name: str) -> str:
    """Which part a file belongs to, decided by its name alone: 80% train, 10% validation, 10% calibration."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return next(label for label, end in SHARES if place < end)


def write(folder: Path) -> dict[str, Path]:
    """Write train.jsonl, validation.jsonl and calibration.jsonl; no file is in two of them.

    Raises: SystemExit when this Python has no readable standard library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    split: dict[str, list[str]] = {label: [] for label, _ in SHARES}
    for name, text in documents(library):
        split[part(name)].append(text)
    if min(len(texts) for texts in split.values()) < 5:
        raise SystemExit(f"{library} holds too few Python sources to train on.")
    paths = {}
    for label, texts in split.items():
        paths[label] = folder / f"{label}.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        paths[label].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def read(path: Path) -> list[str]:
    """The texts of a .jsonl file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]

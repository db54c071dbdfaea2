"""The files of an artifact and the manifest that names them. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "secateur/manifest.json"
MANIFEST_SCHEMA = "secateur.manifest/1"
_NOT_OF_THE_RESULT = ("metadata", "priority", "queue", "limits")


def result_of(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a specification, as JSON, that the result depends on."""
    return {key: value for key, value in specification.items() if key not in _NOT_OF_THE_RESULT}


def file_entry(root: Path, path: Path) -> dict[str, Any]:
    """{path (relative to ``root``), bytes, sha256}."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": digest}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON data, always as the same bytes."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def file_faults(folder: Path) -> list[str]:
    """Files that are not what the manifest says."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return []
    faults = []
    for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]:
        path = folder / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            faults.append(f"{entry['path']} is missing or has another size than the manifest says")
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    faults.append(f"{entry['path']} does not have the sha256 that the manifest says")
    return faults

"""Finished steps of a job on disk, so that a job that was killed goes on where it stopped.

A step is two files, `NAME.safetensors` (when it has tensors) and `NAME.json`; the JSON is written last and
carries
the key of the job and the hash of the tensors, so a step exists wholly or not at all. Steps of another key
(another
specification, other model bytes, another engine or torch) are never read: they are deleted at the start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Hook = Callable[[str], None]


class CheckpointObserver(Protocol):
    """Whoever must hear of finished steps (the runner passes them on to its supervisor)."""

    def checkpoint(self, name: str, files: Sequence[Path], data: dict[str, Any]) -> None: ...


def _quiet(name: str) -> None:
    """The hook of a store that nobody watches."""


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def job_key(specification: Mapping[str, Any], files: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Key of a job's steps: sha256 over the specification, the hashes of its input files and the versions."""
    text = json.dumps(
        {"specification": specification, "files": dict(files), "versions": dict(versions)},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The finished steps of one job under `root`; see the module's text.

    `hook(name)` is called at "before_checkpoint_rename" and "after_checkpoint_rename" of every step.
    """

    def __init__(
        self, root: Path, key: str, observer: CheckpointObserver | None = None, hook: Hook | None = None
    ) -> None:
        self.root = root
        self.key = key
        self._observer = observer
        self._hook = hook or _quiet
        root.mkdir(parents=True, exist_ok=True)
        self._drop_others()

    def _drop_others(self) -> None:
        """Delete unfinished files, steps of another key and steps whose tensors are not what was written."""
        for stray in self.root.glob("*.tmp"):
            stray.unlink()
        for path in sorted(self.root.glob("*.json")):
            if not self._sound(path):
                path.unlink()
        for path in self.root.glob("*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def _sound(self, path: Path) -> bool:
        try:
            record = json.loads(path.read_text())
        except ValueError:
            return False
        if not isinstance(record, dict) or record.get("key") != self.key:
            return False
        digest = record.get("sha256")
        tensors = path.with_suffix(".safetensors")
        return digest is None or (tensors.exists() and file_digest(tensors) == digest)

    def path(self, name: str) -> Path:
        """Where the tensors of a step are; the file exists only when the step has tensors."""
        return self.root / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the step is finished."""
        return (self.root / f"{name}.json").exists()

    def names(self, prefix: str = "") -> list[str]:
        """Names of finished steps with this prefix, sorted."""
        return sorted(path.stem for path in self.root.glob(f"{prefix}*.json"))

    def save(self, name: str, tensors: Mapping[str, torch.Tensor] | None, data: Mapping[str, Any]) -> None:
        """Write a step durably (temporary file, fsync, rename), then tell the observer.

        `tensors` are written as they are (any shape and dtype safetensors knows); `data` must be plain JSON.
        """
        record: dict[str, Any] = {"key": self.key, "sha256": None, "data": dict(data)}
        files: list[Path] = []
        if tensors is not None:
            target = self.path(name)
            temporary = target.with_name(target.name + ".tmp")
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
            self._sync(temporary)
            record["sha256"] = file_digest(temporary)
            self._rename(temporary, target)
            files.append(target)
        target = self.root / f"{name}.json"
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(json.dumps(record, sort_keys=True))
        self._sync(temporary)
        self._rename(temporary, target)
        files.append(target)
        if self._observer is not None:
            self._observer.checkpoint(name, files, dict(data))

    def _sync(self, path: Path) -> None:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())

    def _rename(self, temporary: Path, target: Path) -> None:
        self._hook("before_checkpoint_rename")
        temporary.replace(target)
        fsync_folder(self.root)
        self._hook("after_checkpoint_rename")

    def data(self, name: str) -> dict[str, Any]:
        """The JSON part of a finished step; KeyError if there is no such step."""
        path = self.root / f"{name}.json"
        if not path.exists():
            raise KeyError(name)
        data: dict[str, Any] = json.loads(path.read_text())["data"]
        return data

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors (empty if it has none) and JSON part of a finished step; KeyError if there is no such
        step.
        """
        data = self.data(name)
        tensors: dict[str, torch.Tensor] = {}
        if self.path(name).exists():
            with safe_open(self.path(name), framework="pt", device="cpu") as stream:
                tensors = {key: stream.get_tensor(key).clone() for key in stream.keys()}
        return tensors, data

    def discard(self, names: Iterable[str]) -> None:
        """Delete steps that nothing needs any more."""
        for name in names:
            (self.root / f"{name}.json").unlink(missing_ok=True)
            self.path(name).unlink(missing_ok=True)

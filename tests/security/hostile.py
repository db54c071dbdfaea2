"""Builds hostile inputs, and the guard that every one of them meets: refused with a clear message,
quickly, having read little."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from compression.errors import CompressionError
from compression.loading.admission import BytesSource, FileSource, admit_model, folder_sources
from tests.tiny_models import tiny_bert, tiny_llama

SECONDS = 5.0


class CountedSource:
    """Counts the bytes that are read, and answers like a file of `size` bytes of which only the start is
    there."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.taken = 0

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        piece = self.data[offset : offset + length]
        self.taken += len(piece)
        return piece


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header (bytes, or JSON data) and a length field that may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    """One tensor of a header."""
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def llama_files(folder: Path, **options: Any) -> dict[str, FileSource]:
    """The files of a good tiny decoder."""
    return folder_sources(tiny_llama(folder, **options))


def bert_files(folder: Path, **options: Any) -> dict[str, FileSource]:
    """The files of a good tiny encoder."""
    return folder_sources(tiny_bert(folder, **options))


def with_config(
    files: Mapping[str, FileSource], change: Callable[[dict[str, Any]], Any]
) -> dict[str, FileSource]:
    """The files with a changed config.json; `change` edits the config, or gives another JSON value."""
    source = files["config.json"]
    config = json.loads(source.read(0, source.size))
    other = change(config)
    data = json.dumps(config if other is None else other).encode()
    return {**files, "config.json": BytesSource(data)}


def refused(
    kind: type[CompressionError], action: Callable[[], Any], words: str = "", seconds: float = SECONDS
) -> CompressionError:
    """Runs an action that must be refused; the message must help and must not tell about this machine."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        action()
    assert time.monotonic() - started < seconds
    message = caught.value.message
    assert words in message, message
    assert message.endswith("."), message
    assert len(message) < 1000
    assert "/tmp" not in message
    assert "Traceback" not in message
    message.encode()
    json.dumps(caught.value.to_json())
    return caught.value


def model_refused(
    kind: type[CompressionError], files: Mapping[str, FileSource], words: str = ""
) -> CompressionError:
    """A model that must be refused."""
    return refused(kind, lambda: admit_model(files), words)

"""Takes what a runner left into the blob store. Only the transaction that follows makes it visible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.files.repository import FileEntry
from workers.messages import Finished
from workers.staging import Staging

_MANIFEST: Final = "secateur/manifest.json"
_MANIFEST_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class Publication:
    """Files of an artifact and a report that are durable in the blob store."""

    format: str
    manifest: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    report: str
    report_html: str
    summary: Mapping[str, Any]


def publish(staging: Staging, finished: Finished, specification: Mapping[str, Any]) -> Publication:
    """Store artifact and report. Raises `StagingInvalid` and `FileNotFoundError` for what is not there."""
    files = staging.store_folder(finished.artifact)
    return Publication(
        format=specification["output"]["formats"][0],
        manifest=_manifest(staging, finished.artifact),
        files=tuple(files),
        report=staging.store(finished.report).sha256,
        report_html=staging.store(finished.report_html).sha256,
        summary=finished.summary,
    )


def _manifest(staging: Staging, artifact: str) -> Mapping[str, Any]:
    """The engine's own manifest; the files have just been read without following links."""
    path = staging.path / artifact / _MANIFEST
    if not path.is_file() or path.stat().st_size > _MANIFEST_BYTES:
        return {}
    data = json.loads(path.read_bytes(), parse_constant=lambda name: None)
    return data if isinstance(data, dict) else {}

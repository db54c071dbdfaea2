"""SQL about blobs: which are still referred to (system scope)."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.tables import File, Job, UploadPart


def referenced(session: Session, digests: Collection[str]) -> set[str]:
    """Those of `digests` that a file, a part of an upload, a report or a checkpoint refers to."""
    found: set[str] = set()
    for column in (File.sha256, UploadPart.sha256):
        found.update(session.scalars(select(column).where(column.in_(digests)).distinct()))
    reports = select(Job.report_sha256, Job.report_html_sha256).where(
        or_(Job.report_sha256.in_(digests), Job.report_html_sha256.in_(digests))
    )
    for row in session.execute(reports):
        found.update(digest for digest in row if digest is not None)
    # Only jobs that have not ended keep a checkpoint, so these are few.
    for checkpoint in session.scalars(select(Job.checkpoint).where(Job.checkpoint.is_not(None))):
        found.update(file["sha256"] for file in (checkpoint or {}).get("files", ()))
    return found & set(digests)

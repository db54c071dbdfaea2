"""Times on the wire: RFC 3339 in UTC, from the microseconds that are stored."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(microseconds: int) -> str:
    """`2026-11-20T09:30:00.123456Z`."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def rfc3339_or_none(microseconds: int | None) -> str | None:
    """Like `rfc3339`; nothing stays nothing."""
    return None if microseconds is None else rfc3339(microseconds)

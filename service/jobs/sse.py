"""A job's events as server-sent events, read from the table, so that any gateway can continue any stream.

Between two looks at the table a stream holds neither a thread nor a database session.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event

from service.errors import InvalidParameter

BATCH = 200
KEEP_ALIVE = b": ping\n\n"
LAST_EVENT = "done"


class StoredEvent(Protocol):
    """One row of a job's history."""

    sequence: int
    type: str
    data: dict[str, Any]
    at: int


@dataclass(frozen=True)
class Pace:
    """How a stream behaves, in seconds: `soonest` to `slowest` between two looks at the table, the longer
    nothing happens; a ping after silence; the end of its life, after which the client resumes.
    """

    soonest: float = 0.25
    slowest: float = 1.0
    ping: float = 15.0
    life: float = 600.0
    retry_milliseconds: int = 2000


ReadEvents = Callable[[int, int], Awaitable[Sequence[StoredEvent]]]
"""(after, limit) -> the events behind the sequence number `after`, in order."""


def last_event_id(request: Request) -> int:
    """The sequence number a reconnecting client has seen last, 0 for a new one; raises InvalidParameter."""
    header = request.headers.get("last-event-id", "").strip()
    if not header:
        return 0
    if not header.isdecimal() or len(header) > 9 or not header.isascii():
        raise InvalidParameter("Last-Event-ID must be the id of an event of this job")
    return int(header)


def wants_stream(request: Request) -> bool:
    """Whether the Accept header asks for server-sent events."""
    return "text/event-stream" in request.headers.get("accept", "").lower()


def encode(event: StoredEvent, at: str) -> bytes:
    """One event on the wire; its data carries the time too, which the format has no field for."""
    data = json.dumps({**event.data, "at": at}, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=data, event=event.type, id=str(event.sequence))


async def _stream(
    after: int, read: ReadEvents, clock: Callable[[int], str], pace: Pace
) -> AsyncIterator[bytes]:
    started = spoke = time.monotonic()
    pause = pace.soonest
    yield format_sse_event(retry=pace.retry_milliseconds, comment="secateur")
    while time.monotonic() - started < pace.life:
        events = await read(after, BATCH)
        for event in events:
            after, spoke = event.sequence, time.monotonic()
            yield encode(event, clock(event.at))
            if event.type == LAST_EVENT:
                return
        if len(events) == BATCH:
            continue
        pause = pace.soonest if events else min(2 * pause, pace.slowest)
        if time.monotonic() - spoke >= pace.ping:
            spoke = time.monotonic()
            yield KEEP_ALIVE
        await anyio.sleep(pause)


def stream(after: int, read: ReadEvents, clock: Callable[[int], str], pace: Pace) -> EventSourceResponse:
    """The answer that sends everything behind `after` and what follows, until the job's `done` event.

    Args:
        clock: renders an event's time.
    """
    return EventSourceResponse(
        _stream(after, read, clock, pace),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )

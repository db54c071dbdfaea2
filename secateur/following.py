"""Following a job to its end: server-sent events first, long polling where those do not get through."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import httpx2

from secateur import errors
from secateur.connection import PASSING_STATUSES, Connection
from secateur.types import Event, Job, Progress

SILENCE = 45.0
"""Seconds without a byte after which a stream counts as dead; the service sends something every 15 s."""

POLL = 25.0
"""Seconds a long poll is held open."""


class Follower:
    """Keeps one job's view up to date until its state is final."""

    def __init__(
        self,
        connection: Connection,
        job_id: str,
        *,
        on_job: Callable[[Job], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._connection = connection
        self._job_id = job_id
        self._on_job = on_job
        self._on_event = on_event
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._last = 0
        self._poor_streams = 0

    def run(self) -> Job:
        """Return the job in a final state.

        Raises: WaitTimeout, ApiError, ServiceUnreachable.
        """
        job = self._read()
        while not job.finished:
            self._check(job)
            if self._poor_streams < 2:
                job = self._stream(job)
            else:
                job = self._poll()
        return job

    def _stream(self, job: Job) -> Job:
        """Consume one event stream, then read the job afresh."""
        heard = False
        try:
            for event in stream_events(
                self._connection, self._job_id, self._last, silence=self._patience(SILENCE)
            ):
                heard = True
                self._last = event.sequence
                job = self._apply(job, event)
                if event.type == "done":
                    break
                self._check(job)
        except (httpx2.TransportError, errors.AnswerNotUnderstood):
            heard = False
        except errors.ApiError as error:
            if error.status not in PASSING_STATUSES and error.status not in {404, 405, 406}:
                raise
            heard = False
        self._poor_streams = 0 if heard else self._poor_streams + 1
        # Also the way out when the stream ended early; a missing job raises here.
        return self._read()

    def _poll(self) -> Job:
        """One long poll; where it is not held open, at most one a second."""
        begun = time.monotonic()
        job = self._read(wait=self._patience(POLL))
        if not job.finished:
            time.sleep(max(0.0, min(1.0, self._patience(1.0)) - (time.monotonic() - begun)))
        return job

    def _apply(self, job: Job, event: Event) -> Job:
        if self._on_event:
            self._on_event(event)
        data = event.data
        if event.type == "progress":
            job = dataclasses.replace(
                job, progress=Progress.from_json(data), stage=data.get("stage") or job.stage
            )
        elif event.type == "stage":
            job = dataclasses.replace(
                job, stage=data.get("stage") or data.get("name") or job.stage, progress=Progress()
            )
        elif event.type == "state" and data.get("state") == "running":
            job = dataclasses.replace(job, state="running", attempt=int(data.get("attempt") or job.attempt))
        else:
            return job
        if self._on_job:
            self._on_job(job)
        return job

    def _read(self, wait: float | None = None) -> Job:
        params = {"wait": int(wait)} if wait and wait >= 1 else None
        patience = 60.0 + (wait or 0.0)
        job = Job.from_json(
            self._connection.json("GET", f"/v1/jobs/{self._job_id}", params=params, timeout=patience)
        )
        if self._on_job:
            self._on_job(job)
        return job

    def _patience(self, longest: float) -> float:
        if self._deadline is None:
            return longest
        return max(0.1, min(longest, self._deadline - time.monotonic()))

    def _check(self, job: Job) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise errors.WaitTimeout(job, self._timeout or 0.0)


def stream_events(
    connection: Connection, job_id: str, after: int = 0, *, silence: float = SILENCE
) -> Iterator[Event]:
    """The events of one stream after the given sequence number, until the service closes the stream.

    Raises: httpx2.TransportError, AnswerNotUnderstood (no event stream), ApiError.
    """
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    with connection.stream(f"/v1/jobs/{job_id}/events", headers=headers, timeout=silence) as response:
        if response.status_code == 204:
            return
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise errors.AnswerNotUnderstood(f"Expected an event stream, got {kind or 'nothing'}.")
        for message in httpx2.EventSource(response):
            event = _event(message)
            if event:
                yield event


def _event(message: httpx2.ServerSentEvent) -> Event | None:
    """An event of the job, or None for anything else on the stream."""
    if not message.id.isdigit():
        return None
    try:
        data = json.loads(message.data) if message.data else {}
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    return Event(int(message.id), message.event, data, data.get("at"))

"""Requests that create are carried out once, however often they are sent with the same Idempotency-Key.

The key is stored in the transaction that creates, so either both exist or none. A request that failed
leaves its key free. While the first one is still running, a second one on the same gateway is answered 409;
on another gateway it waits for the first one's end.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import Request
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service.auth import Call
from service.errors import IdempotencyKeyReused, RequestInProgress
from service.multipart import Form
from service.requests.repository import Requests, StoredRequest


@dataclass(frozen=True)
class Answer:
    """What a creating request is answered.

    Args:
        kept: what a repetition is answered instead of `body`, when it holds a secret.
    """

    status: int
    body: dict[str, Any]
    kept: dict[str, Any] | None = None
    replayed: bool = False

    def response(self, **headers: str) -> Response:
        """The answer as a response; a repeated one says so. Names of `headers`: `Retry_After` and so on."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.replayed:
            named["Idempotency-Replayed"] = "true"
        return JSONResponse(self.body, status_code=self.status, headers=named)


class InFlight:
    """The keys of the requests that this process is answering now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[tuple[str, str]] = set()

    @contextmanager
    def hold(self, call: Call) -> Iterator[None]:
        """Keep the call's key for this request; raises RequestInProgress when another one has it."""
        if call.idempotency_key is None:
            yield
            return
        key = (call.tenant, call.idempotency_key)
        with self._lock:
            if key in self._keys:
                raise RequestInProgress(
                    "ask again when the first request is answered", headers={"Retry-After": "1"}
                )
            self._keys.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard(key)


class Turns:
    """Lets requests about the same thing go one after the other within this process; none holds a thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Wait for one's turn with `name`."""
        lock, count = self._waiting.get(name, (anyio.Lock(), 0))
        self._waiting[name] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._waiting.pop(name)
            if count > 1:
                self._waiting[name] = (lock, count - 1)


def in_flight(request: Request) -> InFlight:
    """The registry of the application that answers `request`."""
    registry: InFlight = request.app.state.in_flight
    return registry


def _fingerprint(request: Request, content: str) -> str:
    return hashlib.sha256(f"{request.method}\n{request.url.path}\n{content}".encode()).hexdigest()


def json_fingerprint(request: Request, raw: bytes) -> str:
    """What makes a JSON request the same one: method, path and the bytes of the body."""
    return _fingerprint(request, hashlib.sha256(raw).hexdigest())


def form_fingerprint(request: Request, form: Form) -> str:
    """What makes a multipart request the same one: method, path, fields, names and content of files."""
    fields = sorted(f"{name}={value!r}" for name, value in form.fields.items())
    files: Iterable[str] = sorted(f"{file.path!r}:{file.sha256}" for file in form.files)
    return _fingerprint(request, hashlib.sha256("\n".join([*fields, *files]).encode()).hexdigest())


def _replay(stored: StoredRequest, fingerprint: str) -> Answer:
    if stored.fingerprint != fingerprint:
        raise IdempotencyKeyReused("send a fresh Idempotency-Key with a different request")
    if stored.status is None or stored.body is None:
        raise RequestInProgress("ask again when the first request is answered", headers={"Retry-After": "1"})
    return Answer(stored.status, stored.body, replayed=True)


def recall(call: Call, fingerprint: str) -> Answer | None:
    """The answer to an earlier sending of this request, before any work is done for it.

    Raises IdempotencyKeyReused when the key came with another request.
    """
    if call.idempotency_key is None:
        return None
    with call.read() as session:
        stored = Requests(session, call.tenant).get(call.idempotency_key)
    return None if stored is None else _replay(stored, fingerprint)


def carry_out(call: Call, fingerprint: str, work: Callable[[Session], Answer]) -> Answer:
    """Do `work` in one transaction together with the key, or give the answer of the time it was done before.

    Raises IdempotencyKeyReused, RequestInProgress and whatever `work` raises; nothing is written then.
    """
    with call.write() as session:
        key = call.idempotency_key
        if key is None:
            return work(session)
        requests = Requests(session, call.tenant)
        stored = requests.begin(key, fingerprint)
        if stored is not None:
            return _replay(stored, fingerprint)
        answer = work(session)
        requests.finish(key, answer.status, answer.body if answer.kept is None else answer.kept)
        return answer

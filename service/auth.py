"""Who calls, and what an endpoint may use on their behalf.

Every call under /v1 depends on `authenticated`: API keys are bearer tokens, looked up by digest and
compared in constant time. Authentication can be off only for a service bound to loopback (`Settings`
enforces it); everybody is then the default tenant.
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import structlog
from fastapi import Depends, Header, Request
from starlette.concurrency import run_in_threadpool

from service.db import SECOND, Database
from service.errors import DatabaseUnavailable, IdempotencyKeyInvalid, Unauthenticated
from service.keys.repository import Callers
from service.keys.secret import digest
from service.tables import DEFAULT_TENANT

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.blobs import BlobStore
    from service.settings import Settings

log = structlog.get_logger("service.auth")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TOUCH_AFTER = 60 * SECOND
_TRUST_SECONDS = 1.0
_MOST_SEEN = 4096


@dataclass(frozen=True)
class Call:
    """What an endpoint works with: the caller's tenant and the service's own things."""

    tenant: str
    settings: Settings
    database: Database
    blobs: BlobStore
    idempotency_key: str | None = None

    def read(self) -> AbstractContextManager[Session]:
        """One reading transaction."""
        return self.database.read()

    def write(self) -> AbstractContextManager[Session]:
        """One writing transaction, committed when its block ends."""
        return self.database.session()


def _bearer(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _refused("send the header Authorization: Bearer <API key>")
    return secret.strip()


def _refused(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": 'Bearer realm="secateur"'})


class Doorkeeper:
    """Knows whose key a secret is. A key once seen is trusted for a second without another look-up, so that
    polling costs one query; a key revoked elsewhere is refused that much later.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[str, tuple[str, float]] = {}

    def recent(self, secret: str) -> str | None:
        """The tenant of a key that was looked up in the last second."""
        tenant, until = self._seen.get(digest(secret), ("", 0.0))
        return tenant if time.monotonic() < until else None

    def forget(self) -> None:
        """Trust nothing without a look-up: a key was revoked."""
        self._seen.clear()

    def look_up(self, secret: str) -> str:
        """The tenant of a live key; raises Unauthenticated."""
        with self._database.read() as session:
            key = Callers(session).authenticate(secret)
            if key is None:
                raise _refused("the API key is unknown, expired or revoked")
            tenant, key_id, last_used = key.tenant_id, key.id, key.last_used_at
        if last_used is None or last_used < time.time_ns() // 1000 - _TOUCH_AFTER:
            self._touch(key_id)
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[digest(secret)] = (tenant, time.monotonic() + _TRUST_SECONDS)
        return tenant

    def _touch(self, key_id: str) -> None:
        try:
            with self._database.session() as session:
                Callers(session).touch(key_id)
        except DatabaseUnavailable:
            # The time of last use is a convenience; the request itself need not wait for a writer.
            log.warning("key_use_not_noted", key=key_id)


async def authenticated(request: Request) -> Call:
    """Dependency of every call under /v1; raises Unauthenticated."""
    state = request.app.state
    tenant = DEFAULT_TENANT
    if state.settings.auth == "required":
        secret, keeper = _bearer(request), state.doorkeeper
        tenant = keeper.recent(secret) or await run_in_threadpool(keeper.look_up, secret)
    return Call(tenant, state.settings, state.database, state.blobs)


async def creating(
    call: Annotated[Call, Depends(authenticated)],
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Repeat a request with the same key: it is carried out once, and answered each time.",
            examples=["5f0f2c1e-6f0e-4f8e-9a59-3a8d1d0a3c11"],
        ),
    ] = None,
) -> Call:
    """Dependency of every call that creates: the caller and the Idempotency-Key, if one was sent."""
    if idempotency_key is None:
        return call
    if not _KEY.fullmatch(idempotency_key):
        raise IdempotencyKeyInvalid(
            "an Idempotency-Key has 1 to 255 printable ASCII characters and no spaces"
        )
    return Call(call.tenant, call.settings, call.database, call.blobs, idempotency_key)


Caller = Annotated[Call, Depends(authenticated)]
"""Parameter of an endpoint that reads or changes."""

Creator = Annotated[Call, Depends(creating)]
"""Parameter of an endpoint that creates."""

"""SQL about idempotency keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.db import microseconds, now
from service.tables import IdempotencyKey


@dataclass(frozen=True)
class StoredRequest:
    """What is known of an earlier request: `status` and `body` are None while it is being answered."""

    fingerprint: str
    status: int | None
    body: dict[str, Any] | None


class Requests:
    """The remembered requests of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def begin(self, key: str, fingerprint: str) -> StoredRequest | None:
        """Takes `key` for this request: None if it is the first one, else what is stored of the earlier one.

        Inside one transaction with the work itself, so a request that fails leaves its key free; a second
        request at the same time waits here for the end of the first.
        """
        values = {
            "tenant_id": self._tenant_id,
            "key": key,
            "fingerprint": fingerprint,
            "created_at": now(),
        }
        if self._session.get_bind().dialect.name == "postgresql":
            created = self._session.scalar(
                postgresql.insert(IdempotencyKey)
                .values(**values)
                .on_conflict_do_nothing()
                .returning(IdempotencyKey.key)
            )
        else:
            created = self._session.scalar(
                sqlite.insert(IdempotencyKey)
                .values(**values)
                .on_conflict_do_nothing()
                .returning(IdempotencyKey.key)
            )
        return None if created is not None else self.get(key)

    def get(self, key: str) -> StoredRequest | None:
        """What is stored under `key`, if anything."""
        statement = select(IdempotencyKey.fingerprint, IdempotencyKey.status, IdempotencyKey.body).where(
            IdempotencyKey.tenant_id == self._tenant_id, IdempotencyKey.key == key
        )
        row = self._session.execute(statement).one_or_none()
        return None if row is None else StoredRequest(row.fingerprint, row.status, row.body)

    def finish(self, key: str, status: int, body: Mapping[str, Any] | None) -> None:
        """Stores the answer, to be given again."""
        self._session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.tenant_id == self._tenant_id, IdempotencyKey.key == key)
            .values(status=status, body=None if body is None else dict(body))
        )

    def forget(self, key: str) -> None:
        """Frees the key, so that the request can be tried again."""
        self._session.execute(
            delete(IdempotencyKey).where(
                IdempotencyKey.tenant_id == self._tenant_id, IdempotencyKey.key == key
            )
        )


def forget_old_requests(session: Session, age_seconds: float = 24 * 3600.0) -> int:
    """Deletes the keys of all tenants that are older than `age_seconds`; returns how many (system scope)."""
    statement = delete(IdempotencyKey).where(IdempotencyKey.created_at < now() - microseconds(age_seconds))
    return len(session.scalars(statement.returning(IdempotencyKey.key)).all())

"""SQL about API keys."""

from __future__ import annotations

from sqlalchemy import Select, insert, or_, select, update
from sqlalchemy.orm import Session

from service import ids
from service.db import microseconds, now
from service.errors import KeyNotFound
from service.keys import secret as secrets
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import ApiKey

_LAST_USED_RESOLUTION = 60.0


class Keys:
    """The API keys of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(self, name: str, *, lifetime_seconds: float | None = None) -> tuple[ApiKey, str]:
        """A new key and its secret, which cannot be read again. Without a lifetime it does not expire."""
        secret = secrets.generate()
        expires = None if lifetime_seconds is None else now() + microseconds(lifetime_seconds)
        row = insert(ApiKey).values(
            id=ids.new_id(ids.KEY),
            tenant_id=self._tenant_id,
            name=name,
            digest=secrets.digest(secret),
            created_at=now(),
            expires_at=expires,
        )
        return self._session.scalars(row.returning(ApiKey)).one(), secret

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[ApiKey]:
        """Keys, newest first, revoked and expired ones included."""
        return paginate(self._session, self._mine(), ApiKey.id, after=after, limit=limit)

    def get(self, key_id: str) -> ApiKey:
        """One key. Raises `KeyNotFound`."""
        row = self._session.scalar(self._mine().where(ApiKey.id == key_id))
        if row is None:
            raise KeyNotFound(f"there is no API key {key_id}")
        return row

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key at once; a key already revoked keeps its time. Raises `KeyNotFound`."""
        row = self.get(key_id)
        if row.revoked_at is None:
            self._session.execute(update(ApiKey).where(ApiKey.id == row.id).values(revoked_at=now()))
            self._session.refresh(row)
        return row

    def _mine(self) -> Select[ApiKey]:
        return select(ApiKey).where(ApiKey.tenant_id == self._tenant_id)


class Callers:
    """Finds out who calls (system scope)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def authenticate(self, secret: str) -> ApiKey | None:
        """The live key with this secret, or None for one that is malformed, unknown, expired or revoked."""
        if not secrets.is_well_formed(secret):
            return None
        statement = select(ApiKey).where(
            ApiKey.digest == secrets.digest(secret),
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()),
        )
        row = self._session.scalar(statement)
        return row if row is not None and secrets.matches(secret, row.digest) else None

    def touch(self, key_id: str) -> None:
        """Notes that the key was used, to the minute. Needs a writing transaction; skip it if not due."""
        due = or_(
            ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now() - microseconds(_LAST_USED_RESOLUTION)
        )
        self._session.execute(update(ApiKey).where(ApiKey.id == key_id, due).values(last_used_at=now()))

    def any_key(self) -> bool:
        """Whether there is any key at all."""
        return self._session.scalar(select(ApiKey.id).limit(1)) is not None

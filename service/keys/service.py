"""API keys: made, listed, revoked. The secret is shown once and never kept."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.auth import Call
from service.idempotency import Answer
from service.keys.repository import Keys
from service.keys.schemas import KeyCreate
from service.names import checked_name
from service.tables import ApiKey
from service.times import rfc3339, rfc3339_or_none


def create(session: Session, call: Call, wanted: KeyCreate) -> Answer:
    """A new key of the caller's tenant; what is kept for repetitions lacks the secret."""
    row, secret = Keys(session, call.tenant).create(
        checked_name(wanted.name), lifetime_seconds=wanted.expires_in
    )
    described = describe(row)
    return Answer(201, {**described, "key": secret}, kept={**described, "key": None})


def describe(key: ApiKey) -> dict[str, Any]:
    """A key on the wire."""
    return {
        "id": key.id,
        "name": key.name,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339_or_none(key.expires_at),
        "revoked_at": rfc3339_or_none(key.revoked_at),
        "last_used_at": rfc3339_or_none(key.last_used_at),
    }

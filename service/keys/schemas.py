"""Bodies and answers of /v1/keys."""

from __future__ import annotations

from pydantic import Field

from service.bodies import RequestBody
from service.schemas import Answer, List


class KeyCreate(RequestBody):
    """A new API key of this tenant."""

    name: str = Field(description="1 to 200 printable characters.")
    expires_in: int | None = Field(
        default=None, ge=60, le=10 * 366 * 86400, description="Seconds; never when left out."
    )


class KeyRead(Answer):
    """An API key. The secret is not kept and cannot be shown again."""

    id: str
    name: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class KeyCreated(KeyRead):
    """A new API key with its secret."""

    key: str | None = Field(
        description="The secret, shown this once; null when a repeated request is answered."
    )


class KeyList(List):
    """A page of API keys, newest first."""

    data: list[KeyRead]

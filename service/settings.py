"""Settings of every process of the service, read from `SECATEUR_...` environment variables."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


def default_home() -> Path:
    """Folder of the embedded service: `$XDG_DATA_HOME/secateur`, else `~/.local/share/secateur`."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "secateur"


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Everything that differs between installations. Production differs from embedded use by three URLs only.

    Times are seconds and sizes are bytes. An URL left empty is derived from `home`.
    """

    model_config = SettingsConfigDict(env_prefix="SECATEUR_", extra="ignore", frozen=True)

    home: Path = Field(default_factory=default_home)
    database_url: str = Field(default="", validate_default=True)
    broker_url: str = ""
    blob_url: str = Field(default="", validate_default=True)
    work_dir: Path = Field(default=Path(), validate_default=True)

    s3_endpoint: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    auth: Literal["required", "off"] = "required"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    lease_seconds: float = Field(default=60.0, gt=0)
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    sweep_seconds: float = Field(default=5.0, gt=0)
    ring_after_seconds: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    worker_concurrency: int = Field(default=1, ge=1)

    max_upload_bytes: int = Field(default=512 * 1024 * MIB, gt=0)
    part_bytes: int = Field(default=64 * MIB, ge=1)
    upload_ttl: float = Field(default=24 * 3600.0, gt=0)
    max_json_bytes: int = Field(default=512 * 1024, gt=0)
    garbage_age_seconds: float = Field(default=24 * 3600.0, ge=0)

    database_pool: int = Field(default=10, ge=1)

    @field_validator("home", mode="after")
    @classmethod
    def _absolute_home(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url", mode="after")
    @classmethod
    def _default_database(cls, value: str, info: ValidationInfo) -> str:
        return value or f"sqlite:///{info.data['home'] / 'secateur.db'}"

    @field_validator("blob_url", mode="after")
    @classmethod
    def _default_blobs(cls, value: str, info: ValidationInfo) -> str:
        return value or (info.data["home"] / "blobs").as_uri()

    @field_validator("work_dir", mode="after")
    @classmethod
    def _default_work_dir(cls, value: Path, info: ValidationInfo) -> Path:
        return value.expanduser().absolute() if value != Path() else info.data["home"] / "work"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth=off is allowed on a loopback address only, not on {self.host!r}; "
                "set SECATEUR_AUTH=required or SECATEUR_HOST=127.0.0.1"
            )
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds")
        return self

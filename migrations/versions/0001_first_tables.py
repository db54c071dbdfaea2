"""First tables.

Revision: 0001, after none
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _tenants()
    _models_and_datasets()
    _files_and_uploads()
    _jobs()
    _events_and_artifacts()
    _requests()


def downgrade() -> None:
    for table in ("idempotency_keys", "artifacts", "job_events", "jobs", "upload_parts", "uploads", "files"):
        op.drop_table(table)
    for table in ("datasets", "models", "api_keys", "tenants"):
        op.drop_table(table)


def text(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=null)


def big(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def integer(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=null)


def json(name: str, *, null: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=null)


def primary(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def foreign(table: str, column: str, target: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{target.partition('.')[0]}"
    return sa.ForeignKeyConstraint([column], [target], name=name, ondelete=ondelete)


def check(table: str, column: str, *values: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=op.f(f"ck_{table}_{column}"))


def index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _tenants() -> None:
    tenants = op.create_table(
        "tenants", text("id"), text("name"), big("created_at"), primary("tenants", "id")
    )
    op.bulk_insert(tenants, [{"id": "ten_default", "name": "default", "created_at": time.time_ns() // 1000}])
    op.create_table(
        "api_keys",
        text("id"),
        text("tenant_id"),
        text("name"),
        text("digest"),
        big("created_at"),
        big("expires_at", null=True),
        big("revoked_at", null=True),
        big("last_used_at", null=True),
        primary("api_keys", "id"),
        foreign("api_keys", "tenant_id", "tenants.id"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    index("api_keys", "tenant_id", "id")


def _models_and_datasets() -> None:
    op.create_table(
        "models",
        text("id"),
        text("tenant_id"),
        text("name"),
        text("status"),
        text("format", null=True),
        text("architecture", null=True),
        text("family", null=True),
        text("task", null=True),
        big("parameters", null=True),
        big("bytes", null=True),
        text("dtype", null=True),
        json("config", null=True),
        json("inspection", null=True),
        json("error", null=True),
        json("metadata"),
        big("created_at"),
        big("deleted_at", null=True),
        primary("models", "id"),
        foreign("models", "tenant_id", "tenants.id"),
        check("models", "status", "importing", "ready", "rejected"),
    )
    index("models", "tenant_id", "id")
    op.create_table(
        "datasets",
        text("id"),
        text("tenant_id"),
        text("name"),
        text("format"),
        text("kind"),
        big("rows"),
        big("bytes"),
        json("facts"),
        big("created_at"),
        big("deleted_at", null=True),
        primary("datasets", "id"),
        foreign("datasets", "tenant_id", "tenants.id"),
    )
    index("datasets", "tenant_id", "id")


def _files_and_uploads() -> None:
    op.create_table(
        "files",
        text("owner_id"),
        text("path"),
        text("tenant_id"),
        text("sha256"),
        big("bytes"),
        primary("files", "owner_id", "path"),
        foreign("files", "tenant_id", "tenants.id"),
    )
    index("files", "sha256")
    op.create_table(
        "uploads",
        text("id"),
        text("tenant_id"),
        text("status"),
        json("files"),
        big("part_bytes"),
        big("expires_at"),
        big("created_at"),
        big("completed_at", null=True),
        primary("uploads", "id"),
        foreign("uploads", "tenant_id", "tenants.id"),
        check("uploads", "status", "open", "completed", "expired", "aborted"),
    )
    index("uploads", "tenant_id", "id")
    index("uploads", "status", "expires_at")
    op.create_table(
        "upload_parts",
        text("upload_id"),
        integer("number"),
        text("sha256"),
        big("bytes"),
        primary("upload_parts", "upload_id", "number"),
        foreign("upload_parts", "upload_id", "uploads.id", ondelete="CASCADE"),
    )
    index("upload_parts", "sha256")


def _jobs() -> None:
    op.create_table(
        "jobs",
        text("id"),
        text("tenant_id"),
        text("state"),
        text("stage", null=True),
        json("progress", null=True),
        json("specification"),
        json("requested"),
        text("model_id"),
        text("queue"),
        integer("priority"),
        integer("attempt"),
        integer("max_attempts"),
        integer("epoch"),
        text("lease_owner", null=True),
        big("lease_until", null=True),
        big("heartbeat_at", null=True),
        big("cancel_requested_at", null=True),
        big("rung_at", null=True),
        big("not_before", null=True),
        json("checkpoint", null=True),
        json("error", null=True),
        json("result", null=True),
        text("report_sha256", null=True),
        text("report_html_sha256", null=True),
        integer("last_sequence"),
        big("created_at"),
        big("started_at", null=True),
        big("finished_at", null=True),
        text("retry_of", null=True),
        primary("jobs", "id"),
        foreign("jobs", "tenant_id", "tenants.id"),
        foreign("jobs", "model_id", "models.id"),
        foreign("jobs", "retry_of", "jobs.id"),
        check("jobs", "state", "queued", "running", "succeeded", "failed", "cancelled"),
    )
    index("jobs", "tenant_id", "id")
    index("jobs", "state", "lease_until")
    index("jobs", "state", "rung_at")
    index("jobs", "model_id", "state")


def _events_and_artifacts() -> None:
    op.create_table(
        "job_events",
        text("job_id"),
        integer("sequence"),
        text("type"),
        json("data"),
        big("at"),
        primary("job_events", "job_id", "sequence"),
        foreign("job_events", "job_id", "jobs.id", ondelete="CASCADE"),
        check("job_events", "type", "state", "stage", "progress", "log", "metric", "done"),
    )
    op.create_table(
        "artifacts",
        text("id"),
        text("tenant_id"),
        text("job_id"),
        text("format"),
        big("bytes"),
        json("manifest"),
        big("created_at"),
        big("deleted_at", null=True),
        primary("artifacts", "id"),
        foreign("artifacts", "tenant_id", "tenants.id"),
        foreign("artifacts", "job_id", "jobs.id"),
        sa.UniqueConstraint("job_id", name="uq_artifacts_job_id"),
    )
    index("artifacts", "tenant_id", "id")


def _requests() -> None:
    op.create_table(
        "idempotency_keys",
        text("tenant_id"),
        text("key"),
        text("fingerprint"),
        integer("status", null=True),
        json("body", null=True),
        big("created_at"),
        primary("idempotency_keys", "tenant_id", "key"),
        foreign("idempotency_keys", "tenant_id", "tenants.id"),
    )
    index("idempotency_keys", "created_at")

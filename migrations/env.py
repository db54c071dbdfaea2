"""Runs migrations on the connection that `service.schema` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from service.tables import Base


def run(connection: Connection) -> None:
    """Migrates inside the caller's transaction, so that a failed migration leaves nothing behind."""
    if connection.dialect.name == "postgresql":
        # Never queue behind a long reader for ever: everything else would queue behind the migration.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7310579)")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])

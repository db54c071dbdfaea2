"""The schema of the database and its migrations."""

from __future__ import annotations

import threading
from importlib import resources
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, inspect

from service.db import Database, create_database_engine
from service.errors import DatabaseUnavailable

# Alembic keeps the migration that is running in a global of the process.
_one_at_a_time: Final = threading.Lock()


def alembic_config() -> Config:
    """Alembic's configuration, built from the installed package: no ini file is needed."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision this code knows."""
    revision = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if revision is None:
        raise DatabaseUnavailable("the installation has no migrations")
    return revision


def current(database: Database) -> str | None:
    """The revision the database is at, or None for an empty database."""
    with database.read() as session:
        connection = session.connection()
        if not inspect(connection).has_table("alembic_version"):
            return None
        return MigrationContext.configure(connection).get_current_revision()


def is_current(database: Database) -> bool:
    """Whether the database is at the newest revision."""
    return current(database) == head()


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the database at `url` to `revision`, in one transaction. Safe to call from several processes."""
    _migrate(url, revision, command.upgrade)


def downgrade(url: str, revision: str) -> None:
    """Takes the database at `url` back to `revision` (`base` for nothing at all), in one transaction."""
    _migrate(url, revision, command.downgrade)


def _no_foreign_keys(connection: Any, record: Any) -> None:
    # Batch migrations rebuild tables on SQLite; with enforcement on, dropping the old one would cascade.
    connection.execute("PRAGMA foreign_keys = OFF").close()


def _migrate(url: str, revision: str, direction: Any) -> None:
    engine = create_database_engine(url, pool_size=1)
    sqlite = engine.dialect.name == "sqlite"
    if sqlite:
        event.listen(engine, "connect", _no_foreign_keys)
    try:
        with _one_at_a_time, engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            direction(config, revision)
            if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                raise DatabaseUnavailable(f"the migration would break a foreign key of table {broken[0]}")
    finally:
        engine.dispose()

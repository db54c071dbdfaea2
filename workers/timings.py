"""Times of layers between jobs: the tables of a tenant go into the work folder, and what a runner measured
comes back, once it is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from compression.anatomy.latency import LatencyTable
from service.db import Database
from service.timings.repository import Timings
from workers.cache import FOLDER, read_plain

_FILES = "latency-*.json"
_MOST = 8
"""Tables that one job may leave: two dtypes are the most that it measures."""


def lend_times(tables: Sequence[LatencyTable], work: Path) -> None:
    """Write tables into the work folder's cache folder, which is made."""
    folder = work / FOLDER
    folder.mkdir(exist_ok=True)
    for table in tables:
        (folder / f"latency-{table.key}.json").write_text(_text(table), encoding="utf-8")


def new_times(lent: Sequence[LatencyTable], work: Path) -> list[LatencyTable]:
    """The tables that a runner left and was not lent, if they are what they should be."""
    known = {table.key: _text(table) for table in lent}
    found = []
    for path in sorted((work / FOLDER).glob(_FILES)):
        raw = read_plain(path)
        try:
            table = LatencyTable.model_validate_json(raw or b"")
        except ValidationError:
            continue
        if path.name == f"latency-{table.key}.json" and known.get(table.key) != _text(table):
            found.append(table)
    return found[:_MOST]


def keep_times(database: Database, tenant: str, tables: Sequence[LatencyTable]) -> None:
    """Keep tables for plans and later jobs."""
    with database.session() as session:
        Timings(session, tenant).keep(tables)


def _text(table: LatencyTable) -> str:
    return json.dumps(table.model_dump(mode="json"), sort_keys=True)

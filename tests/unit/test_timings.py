"""Times of layers between jobs: kept by tenant on both databases, lent to runners, checked when they come
back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import LatencyTable
from compression.loading.admission import admit_model, folder_sources
from service.db import Database
from service.tables import DEFAULT_TENANT
from service.tenants.repository import Tenants
from service.timings import repository
from service.timings.repository import Timings
from tests.timings import made_table
from tests.tiny_models import tiny_llama
from workers.cache import FILE_BYTES, FOLDER
from workers.timings import keep_times, lend_times, new_times


@pytest.fixture(scope="module")
def inspection(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    folder = tiny_llama(tmp_path_factory.mktemp("model"))
    return Inspection.from_json(admit_model(folder_sources(folder)).inspection)


def _of(database: Database, tenant: str, shape: str) -> list[LatencyTable]:
    with database.read() as session:
        return [table for table, _ in Timings(session, tenant).of(shape)]


class TestKept:
    def test_the_newest_of_a_shape_first(self, database: Database, inspection: Inspection) -> None:
        first, second = made_table(inspection), made_table(inspection, threads=2)
        keep_times(database, DEFAULT_TENANT, [first])
        keep_times(database, DEFAULT_TENANT, [second])
        assert _of(database, DEFAULT_TENANT, first.shape) == [second, first]
        again = first.scaled(2.0)
        keep_times(database, DEFAULT_TENANT, [again])
        assert _of(database, DEFAULT_TENANT, first.shape) == [again, second]
        assert _of(database, DEFAULT_TENANT, "0" * 32) == []
        with database.read() as session:
            (_, at), *_ = Timings(session, DEFAULT_TENANT).of(first.shape)
            assert at.endswith("Z")
            assert list(Timings(session, DEFAULT_TENANT).newest()) == [again, second]

    def test_tenants_see_their_own(self, database: Database, inspection: Inspection) -> None:
        with database.session() as session:
            other = Tenants(session).create("other").id
        table = made_table(inspection)
        keep_times(database, other, [table])
        assert _of(database, DEFAULT_TENANT, table.shape) == []
        keep_times(database, DEFAULT_TENANT, [table.scaled(3.0)])
        assert _of(database, other, table.shape) == [table]

    def test_only_so_many(
        self, database: Database, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repository, "KEPT_TABLES", 3)
        for threads in range(1, 6):
            keep_times(database, DEFAULT_TENANT, [made_table(inspection, threads=threads)])
        found = _of(database, DEFAULT_TENANT, made_table(inspection).shape)
        assert [table.threads for table in found] == [5, 4, 3]


class TestBetweenJobs:
    def test_what_was_measured_comes_back_and_what_was_lent_does_not(
        self, inspection: Inspection, tmp_path: Path
    ) -> None:
        lent, new = made_table(inspection), made_table(inspection, dtype="bfloat16")
        lend_times([lent], tmp_path)
        assert new_times([lent], tmp_path) == []
        _leave(tmp_path, new)
        _leave(tmp_path, lent.scaled(1.5))
        assert sorted(new_times([lent], tmp_path), key=lambda table: table.dtype) == [new, lent.scaled(1.5)]

    def test_what_is_no_table_does_not(self, inspection: Inspection, tmp_path: Path) -> None:
        table = made_table(inspection)
        text, folder = table.model_dump_json(), tmp_path / FOLDER
        folder.mkdir()
        (folder / "latency-wrong.json").write_text(text)
        for number, bad in enumerate(("", "[]", "{", '{"a": NaN}', "[" * 100_000, text[:-2])):
            (folder / f"latency-{number}.json").write_text(bad)
        (folder / "latency-large.json").write_text(text + " " * FILE_BYTES)
        secret = tmp_path / "secret.json"
        secret.write_text(text)
        (folder / f"latency-{table.key}.json").symlink_to(secret)
        os.mkfifo(folder / "latency-pipe.json")
        assert new_times([], tmp_path) == []

    def test_only_a_few_of_one_job(self, inspection: Inspection, tmp_path: Path) -> None:
        for threads in range(1, 30):
            _leave(tmp_path, made_table(inspection, threads=threads))
        assert len(new_times([], tmp_path)) == 8


def _leave(work: Path, table: LatencyTable) -> None:
    (work / FOLDER).mkdir(exist_ok=True)
    text = json.dumps(table.model_dump(mode="json"), sort_keys=True)
    (work / FOLDER / f"latency-{table.key}.json").write_text(text)

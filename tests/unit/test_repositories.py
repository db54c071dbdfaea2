"""Models, datasets, artifacts, files, jobs and their lists, on both databases; no tenant sees another's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.specification import named_datasets
from service import errors
from service.artifacts.repository import Artifacts
from service.datasets.repository import Datasets
from service.db import Database
from service.files.repository import FileEntry, Files
from service.jobs.repository import Jobs, figures
from service.keys.repository import Keys
from service.models.repository import Models
from service.uploads.repository import Uploads
from tests import seeds

TENANT = "ten_default"


class TestModels:
    def test_import_that_ends_well(self, database: Database) -> None:
        with database.session() as session:
            made = Models(session, TENANT).create(
                name="m", files=[seeds.entry("b"), seeds.entry("a")], metadata={"team": "x"}
            )
        assert (made.status, made.metadata_, made.bytes) == ("importing", {"team": "x"}, None)
        with database.session() as session:
            with pytest.raises(errors.ModelNotReady):
                Models(session, TENANT).ready(made.id)
            Models(session, TENANT).admit(made.id, seeds.FACTS)
        with database.read() as session:
            found = Models(session, TENANT).ready(made.id)
            assert {key: getattr(found, key) for key in seeds.FACTS} == seeds.FACTS
            assert [file.path for file in Files(session, TENANT).of(made.id)] == ["a", "b"]

    def test_import_that_ends_badly(self, database: Database) -> None:
        error = {"code": "pickle_refused", "message": "no pickles"}
        with database.session() as session:
            made = Models(session, TENANT).create(name="m", files=[])
            assert Models(session, TENANT).reject(made.id, error).error == error
            with pytest.raises(errors.ModelNotFound):
                Models(session, TENANT).admit(made.id, seeds.FACTS)

    def test_delete_takes_its_files(self, database: Database) -> None:
        model = seeds.make_model(database)
        with database.session() as session:
            Models(session, TENANT).delete(model)
        with database.session() as session:
            with pytest.raises(errors.ModelNotFound):
                Models(session, TENANT).get(model)
            with pytest.raises(errors.ModelNotFound):
                Models(session, TENANT).delete(model)
            assert Files(session, TENANT).of(model) == []
            assert Models(session, TENANT).list().data == []

    def test_delete_of_one_in_use(self, database: Database) -> None:
        model = seeds.make_model(database)
        job = seeds.make_job(database, model)
        with pytest.raises(errors.ModelInUse, match=job), database.session() as session:
            Models(session, TENANT).delete(model)
        seeds.succeed(database, seeds.claim(database, job))
        with database.session() as session:
            Models(session, TENANT).delete(model)
        assert seeds.job_row(database, job).model_id == model

    def test_delete_against_new_job(self, database: Database) -> None:
        for _ in range(8):
            model = seeds.make_model(database)

            def delete(model: str = model) -> bool:
                try:
                    with database.session() as session:
                        Models(session, TENANT).delete(model)
                except errors.ModelInUse:
                    return False
                return True

            def submit(model: str = model) -> bool:
                try:
                    seeds.make_job(database, model)
                except errors.ModelNotFound:
                    return False
                return True

            with ThreadPoolExecutor(2) as pool:
                deleted, submitted = [
                    future.result() for future in (pool.submit(delete), pool.submit(submit))
                ]
            assert deleted != submitted


class TestDatasets:
    def test_create_and_delete(self, database: Database) -> None:
        dataset = seeds.make_dataset(database)
        with database.session() as session:
            row = Datasets(session, TENANT).get(dataset)
            assert (row.format, row.kind, row.rows, row.bytes, row.facts) == ("jsonl", "text", 3, 30, {})
            assert [file.path for file in Files(session, TENANT).of(dataset)] == ["data.jsonl"]
            Datasets(session, TENANT).delete(dataset)
        with database.read() as session, pytest.raises(errors.DatasetNotFound):
            Datasets(session, TENANT).get(dataset)

    @pytest.mark.parametrize(
        "part", ["calibration", "recovery", "evaluation", "calibration/domain", "evaluation/domain"]
    )
    def test_delete_of_one_in_use(self, database: Database, part: str) -> None:
        model, dataset = seeds.make_model(database), seeds.make_dataset(database)
        name, _, inner = part.partition("/")
        found = {"dataset": dataset}
        job = seeds.make_job(database, model, specification={name: {inner: found} if inner else found})
        with pytest.raises(errors.DatasetInUse, match=job), database.session() as session:
            Datasets(session, TENANT).delete(dataset)
        with database.session() as session:
            Jobs(session, TENANT).cancel(job)
            Datasets(session, TENANT).delete(dataset)

    def test_of_a_specification(self) -> None:
        specification: dict[str, Any] = {
            "calibration": {"dataset": "a"},
            "recovery": "none",
            "evaluation": {"dataset": None, "domain": {"dataset": "c"}},
            "dataset": "x",
        }
        assert named_datasets(specification) == {"a", "c"}
        specification["calibration"] = {"dataset": "a", "domain": {"dataset": "b"}}
        specification["evaluation"] = {"dataset": "a", "domain": None}
        assert named_datasets(specification) == {"a", "b"}


class TestJobs:
    def test_create(self, database: Database) -> None:
        model = seeds.make_model(database)
        job = seeds.make_job(database, model, specification={"queue": "gpu", "priority": 3})
        row = seeds.job_row(database, job)
        assert (row.state, row.queue, row.priority, row.attempt, row.epoch) == ("queued", "gpu", 3, 0, 0)
        assert (row.requested, row.specification["recipe"]) == ({"model": model}, "magnitude")
        assert [event[:3] for event in seeds.snapshot(database, job)["events"]] == [
            (1, "state", {"state": "queued", "attempt": 0})
        ]

    def test_create_without_its_inputs(self, database: Database) -> None:
        model = seeds.make_model(database)
        with pytest.raises(errors.ModelNotFound):
            seeds.make_job(database, "mdl_unknown")
        with pytest.raises(errors.DatasetNotFound):
            seeds.make_job(database, model, specification={"calibration": {"dataset": "dst_unknown"}})
        with database.read() as session:
            assert Jobs(session, TENANT).list().data == []

    def test_retry(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database), max_attempts=3)
        with pytest.raises(errors.JobNotFinished), database.session() as session:
            Jobs(session, TENANT).retry(job)
        with database.session() as session:
            Jobs(session, TENANT).cancel(job)
            again = Jobs(session, TENANT).retry(job)
            old = Jobs(session, TENANT).get(job)
        assert again.id != job
        assert (again.state, again.retry_of, again.max_attempts) == ("queued", job, 3)
        assert (again.specification, again.requested) == (old.specification, old.requested)
        seeds.succeed(database, seeds.claim(database, again.id))
        with pytest.raises(errors.JobFinished), database.session() as session:
            Jobs(session, TENANT).retry(again.id)

    def test_lists_by_state_and_model(self, database: Database) -> None:
        models = [seeds.make_model(database) for _ in range(2)]
        jobs = [seeds.make_job(database, models[number % 2]) for number in range(6)]
        seeds.claim(database, jobs[0])
        with database.read() as session:
            repository = Jobs(session, TENANT)
            assert [row.id for row in repository.list().data] == jobs[::-1]
            assert [row.id for row in repository.list(state="running").data] == [jobs[0]]
            assert [row.id for row in repository.list(model_id=models[1]).data] == jobs[1::2][::-1]

    def test_events_from_a_place_on(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database))
        seeds.succeed(database, seeds.claim(database, job))
        with database.read() as session:
            repository = Jobs(session, TENANT)
            assert [event.sequence for event in repository.events(job, after=1)] == [2, 3, 4]
            assert [event.sequence for event in repository.events(job, limit=2)] == [1, 2]
            assert repository.events(job, after=4) == []

    def test_figures(self, database: Database) -> None:
        model = seeds.make_model(database)
        jobs = [seeds.make_job(database, model) for _ in range(3)]
        seeds.claim(database, jobs[0])
        with database.read() as session:
            found = {(figure.queue, figure.state): figure.jobs for figure in figures(session)}
        assert found == {("cpu", "running"): 1, ("cpu", "queued"): 2}


class TestArtifacts:
    def test_delete_keeps_the_job(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database))
        artifact = seeds.succeed(database, seeds.claim(database, job))
        with database.session() as session:
            row = Artifacts(session, TENANT).get(artifact)
            assert (row.job_id, row.format, row.manifest) == (job, "safetensors", {"version": 1})
            assert len(Files(session, TENANT).of(artifact)) == 2
            Artifacts(session, TENANT).delete(artifact)
        with database.read() as session:
            with pytest.raises(errors.ArtifactNotFound):
                Artifacts(session, TENANT).get(artifact)
            assert Files(session, TENANT).of(artifact) == []
            assert Jobs(session, TENANT).get(job).state == "succeeded"


class TestFiles:
    def test_get(self, database: Database) -> None:
        model = seeds.make_model(database)
        with database.read() as session:
            found = Files(session, TENANT).get(model, "config.json")
            assert found in Files(session, TENANT).of(model)
            with pytest.raises(errors.FileNotFound, match=r"other\.json"):
                Files(session, TENANT).get(model, "other.json")

    def test_path_twice(self, database: Database) -> None:
        with pytest.raises(IntegrityError), database.session() as session:
            Files(session, TENANT).add("mdl_x", [FileEntry("a", "0" * 64, 1), FileEntry("a", "1" * 64, 1)])


class TestLists:
    def test_pages(self, database: Database) -> None:
        models = [seeds.make_model(database, name=str(number)) for number in range(7)][::-1]
        seen, after = [], None
        with database.read() as session:
            while True:
                page = Models(session, TENANT).list(after=after, limit=3)
                seen += [row.id for row in page.data]
                assert page.has_more == (page.next is not None)
                if not page.has_more:
                    break
                assert page.next == seen[-1]
                after = page.next
        assert seen == models

    def test_new_rows_do_not_shift_pages(self, database: Database) -> None:
        models = [seeds.make_model(database) for _ in range(4)][::-1]
        with database.read() as session:
            first = Models(session, TENANT).list(limit=2)
        seeds.make_model(database)
        with database.session() as session:
            Models(session, TENANT).delete(models[1])
            second = Models(session, TENANT).list(limit=2, after=first.next)
        assert [row.id for row in second.data] == models[2:]

    @pytest.mark.parametrize(("limit", "rows"), [(0, 1), (-5, 1), (2, 2), (1000, 3)])
    def test_limits_are_kept_in_bounds(self, database: Database, limit: int, rows: int) -> None:
        for _ in range(3):
            seeds.make_model(database)
        with database.read() as session:
            assert len(Models(session, TENANT).list(limit=limit).data) == rows

    def test_exactly_full_page(self, database: Database) -> None:
        seeds.make_model(database)
        with database.read() as session:
            page = Models(session, TENANT).list(limit=1).map(lambda row: row.name)
        assert (page.data, page.has_more, page.next) == (["model"], False, None)


Call = Callable[[Session, str, dict[str, str]], Any]

FOREIGN: dict[str, tuple[type[errors.NotFound], Call]] = {
    "model": (errors.ModelNotFound, lambda s, t, ids: Models(s, t).get(ids["model"])),
    "model lock": (errors.ModelNotFound, lambda s, t, ids: Models(s, t).get(ids["model"], lock=True)),
    "model delete": (errors.ModelNotFound, lambda s, t, ids: Models(s, t).delete(ids["model"])),
    "model admit": (errors.ModelNotFound, lambda s, t, ids: Models(s, t).admit(ids["model"], {})),
    "dataset": (errors.DatasetNotFound, lambda s, t, ids: Datasets(s, t).get(ids["dataset"])),
    "dataset delete": (errors.DatasetNotFound, lambda s, t, ids: Datasets(s, t).delete(ids["dataset"])),
    "upload": (errors.UploadNotFound, lambda s, t, ids: Uploads(s, t).get(ids["upload"])),
    "upload parts": (errors.UploadNotFound, lambda s, t, ids: Uploads(s, t).parts(ids["upload"])),
    "upload abort": (errors.UploadNotFound, lambda s, t, ids: Uploads(s, t).abort(ids["upload"])),
    "upload complete": (errors.UploadNotFound, lambda s, t, ids: Uploads(s, t).complete(ids["upload"], [])),
    "upload part": (
        errors.UploadNotFound,
        lambda s, t, ids: Uploads(s, t).put_part(ids["upload"], 1, "0" * 64, 1, ttl_seconds=1),
    ),
    "job": (errors.JobNotFound, lambda s, t, ids: Jobs(s, t).get(ids["job"])),
    "job cancel": (errors.JobNotFound, lambda s, t, ids: Jobs(s, t).cancel(ids["job"])),
    "job retry": (errors.JobNotFound, lambda s, t, ids: Jobs(s, t).retry(ids["job"])),
    "job events": (errors.JobNotFound, lambda s, t, ids: Jobs(s, t).events(ids["job"])),
    "job of a foreign model": (
        errors.ModelNotFound,
        lambda s, t, ids: Jobs(s, t).create(
            specification={"model": ids["model"]}, requested={}, max_attempts=1
        ),
    ),
    "artifact": (errors.ArtifactNotFound, lambda s, t, ids: Artifacts(s, t).get(ids["artifact"])),
    "artifact delete": (errors.ArtifactNotFound, lambda s, t, ids: Artifacts(s, t).delete(ids["artifact"])),
    "file": (errors.FileNotFound, lambda s, t, ids: Files(s, t).get(ids["model"], "config.json")),
    "key": (errors.KeyNotFound, lambda s, t, ids: Keys(s, t).get(ids["key"])),
    "key revoke": (errors.KeyNotFound, lambda s, t, ids: Keys(s, t).revoke(ids["key"])),
}


class TestTenants:
    @pytest.fixture
    def theirs(self, database: Database) -> dict[str, str]:
        model = seeds.make_model(database)
        done = seeds.make_job(database, model)
        with database.session() as session:
            upload = Uploads(session, TENANT).create(
                files=[{"path": "a", "bytes": 1, "sha256": None}], part_bytes=1, ttl_seconds=60
            )
            key, _ = Keys(session, TENANT).create("k")
        return {
            "model": model,
            "dataset": seeds.make_dataset(database),
            "artifact": seeds.succeed(database, seeds.claim(database, done)),
            "job": seeds.make_job(database, model),
            "upload": upload.id,
            "key": key.id,
        }

    def test_do_not_see_each_other(self, database: Database, theirs: dict[str, str]) -> None:
        other = seeds.other_tenant(database)
        before = seeds.snapshot(database, theirs["job"])
        for name, (error, call) in FOREIGN.items():
            with pytest.raises(error), database.session() as session:
                call(session, other, theirs)
                pytest.fail(f"{name} was possible")
        with database.session() as session:
            for repository in (Models, Datasets, Uploads, Jobs, Artifacts, Keys):
                assert repository(session, other).list().data == []  # type: ignore[attr-defined]
            assert Files(session, other).of(theirs["model"]) == []
            Files(session, other).remove(theirs["model"])
        with database.read() as session:
            assert len(Files(session, TENANT).of(theirs["model"])) == 2
        assert seeds.snapshot(database, theirs["job"]) == before

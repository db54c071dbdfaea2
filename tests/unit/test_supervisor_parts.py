"""The supervisor's parts: messages of runners, the work folder, the held lease."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from service.blobs import LocalBlobs
from service.db import Database
from service.errors import DatabaseUnavailable, LeaseLost
from service.jobs.repository import CANCEL_GRACE_SECONDS, Jobs, NewEvent
from service.leases.repository import Leases
from service.settings import Settings
from tests import seeds
from workers import lease as leases_module
from workers import messages, runner, staging
from workers.lease import HeldLease, claim
from workers.staging import Staging, StagingInvalid, find_inputs


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"[]",
        b'{"type": "unknown"}',
        b'{"type": "stage", "stage": "dance"}',
        b'{"type": "progress", "done": -1, "total": 3}',
        b'{"type": "error", "code": "No Code", "message": ""}',
        b'{"type": "checkpoint", "name": "a", "files": ["../x"]}',
        b'{"type": "checkpoint", "name": "a", "files": ["/etc/passwd"]}',
        b'{"type": "result", "artifact": "a/../../b", "report": "r", "report_html": "h", "summary": {}}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_messages_are_refused(line: bytes) -> None:
    with pytest.raises(messages.MessageInvalid):
        messages.parse(line)


def test_numbers_that_json_does_not_have_become_null() -> None:
    message = messages.parse(b'{"type": "metric", "name": "x", "value": NaN}')
    assert message == messages.Measured(type="metric", name="x", value=None)
    summary = {"a": 1.5}
    line = {"type": "result", "artifact": "a", "report": "r", "report_html": "h", "summary": summary}
    parsed = messages.parse(json.dumps(line).encode())
    assert isinstance(parsed, messages.Finished)
    assert parsed.summary == summary


def test_messages_for_users_have_no_folders() -> None:
    assert (
        runner.without_paths("cannot read /var/lib/x/model.safetensors here")
        == "cannot read model.safetensors here"
    )
    assert runner.without_paths("'/a/b/c'") == "'c'"
    assert runner.without_paths("see https://example.org/a/b") == "see https://example.org/a/b"
    assert runner.without_paths("input/model/config.json") == "input/model/config.json"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "memory_exceeded"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory_exceeded"),
        (OSError(28, "No space left on device"), "storage_full"),
        (OSError(27, "File too large"), "storage_full"),
        (ZeroDivisionError(), "internal"),
    ],
)
def test_what_ends_the_engine_gets_a_code(error: BaseException, code: str) -> None:
    assert runner.describe(error)[0] == code


@pytest.fixture
def held(database: Database, settings: Settings) -> HeldLease:
    model = seeds.make_model(database)
    job = seeds.make_job(database, model, specification={"limits": {"seconds": 60}})
    found = claim(database, job, "tests", settings)
    assert found is not None
    return found


def row(database: Database, held: HeldLease) -> Any:
    return seeds.job_row(database, held.lease.job_id)


def test_news_are_written_in_batches_and_in_order(database: Database, held: HeldLease) -> None:
    held.stage("prune")
    for done in range(1, 201):
        held.progress(done, 200)
    held.note("metric", {"name": "perplexity", "value": 3.5})
    held.tick()
    job = row(database, held)
    assert job.stage == "prune"
    assert job.progress["done"] == 200
    assert job.progress["fraction"] == 1.0
    assert job.progress["eta_seconds"] == 0.0
    with database.read() as session:
        events = Jobs(session, job.tenant_id).events(job.id)
    kinds = [event.type for event in events]
    assert kinds[2] == "stage"
    assert kinds[-1] == "metric"
    assert kinds.count("progress") == 100
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_events_of_a_commit_without_answer_are_not_doubled(database: Database, held: HeldLease) -> None:
    held.note("log", {"message": "first"})
    held.tick()
    held.note("log", {"message": "second"})
    # The transaction stands, but its answer was lost: nothing was told to the lease that it is written.
    with database.session() as session:
        held._write_news(Leases(session))
    held.note("log", {"message": "third"})
    held._beat()
    with database.read() as session:
        events = Jobs(session, held.lease.tenant_id).events(held.lease.job_id)
    assert [event.data["message"] for event in events if event.type == "log"] == ["first", "second", "third"]


def test_a_request_to_cancel_is_seen_within_a_second(database: Database, held: HeldLease) -> None:
    held.tick()
    with database.session() as session:
        Jobs(session, held.lease.tenant_id).cancel(held.lease.job_id)
    held._look()
    assert held.cancel_requested
    held.tick()
    held.cancelled()
    assert row(database, held).state == "cancelled"


def test_beats_do_not_lengthen_a_lease_whose_job_is_to_be_cancelled(
    database: Database, held: HeldLease
) -> None:
    with database.session() as session:
        Jobs(session, held.lease.tenant_id).cancel(held.lease.job_id)
    held._beat()
    first = row(database, held)
    time.sleep(0.3)
    held._beat()
    second = row(database, held)
    assert first.lease_until == second.lease_until
    assert second.lease_until - second.cancel_requested_at <= CANCEL_GRACE_SECONDS * 1e6


def test_a_claim_whose_answer_was_lost_is_not_charged(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = seeds.make_job(database, seeds.make_model(database))
    session, lost = database.session, []

    @contextmanager
    def answer_lost() -> Iterator[Session]:
        with session() as inner:
            yield inner
        if not lost:
            lost.append(True)
            raise DatabaseUnavailable("the connection broke after the commit")

    monkeypatch.setattr(database, "session", answer_lost)
    held = claim(database, job, "tests", settings)
    assert lost
    assert held is not None
    assert (held.lease.epoch, held.lease.attempt) == (1, 1)
    held.fail("internal", "done")
    assert row(database, held).state == "failed"
    assert claim(database, job, "tests", settings) is None


def test_what_a_job_needs_is_asked_again_while_the_lease_holds(held: HeldLease) -> None:
    asked = []

    def question() -> str:
        asked.append(True)
        if len(asked) < 3:
            raise DatabaseUnavailable("away")
        return "answer"

    assert held.ask(question) == "answer"
    assert len(asked) == 3


def test_a_fenced_lease_is_noticed_by_look_and_by_beat(database: Database, held: HeldLease) -> None:
    with database.session() as session:
        Leases(session).heartbeat(held.lease, -1)
    assert seeds.claim(database, held.lease.job_id).epoch == 2
    with pytest.raises(LeaseLost):
        held._look()
    with pytest.raises(LeaseLost):
        held._beat()
    with pytest.raises(LeaseLost):
        held.fail("internal", "late")
    assert row(database, held).state == "running"


def test_without_a_database_the_lease_is_presumed_lost(tmp_path: Path) -> None:
    from service import schema

    folder = tmp_path / "db"
    folder.mkdir()
    settings = Settings(
        home=tmp_path, database_url=f"sqlite:///{folder}/s.db", lease_seconds=2, heartbeat_seconds=0.2
    )
    schema.upgrade(settings.database_url)
    database = Database(settings.database_url)
    job = seeds.make_job(database, seeds.make_model(database))
    began = leases_module.clock()  # the lease counts from before it was asked for
    held = claim(database, job, "tests", settings)
    assert held is not None
    database.dispose()
    folder.rename(tmp_path / "away")
    held.note("log", {"message": "kept"})
    with pytest.raises(LeaseLost):
        while True:
            held.tick()
    assert 1.0 < leases_module.clock() - began < 20.0
    (tmp_path / "away").rename(folder)
    held.tick()
    with database.read() as session:
        last = Jobs(session, held.lease.tenant_id).events(job)[-1]
    assert NewEvent(last.type, last.data) == NewEvent("log", {"message": "kept"})
    database.dispose()


@pytest.fixture
def place(held: HeldLease, settings: Settings, blobs: LocalBlobs) -> Staging:
    place = Staging(settings, held.lease, blobs)
    place.own()
    place.prepare(staging.Inputs((), {}), "cpu", 1)
    return place


def test_a_work_folder_is_private_and_goes_away(place: Staging, settings: Settings) -> None:
    assert place.path.stat().st_mode & 0o777 == 0o700
    job = json.loads((place.path / "job.json").read_text())
    assert job["model"] == "input/model"
    assert str(settings.work_dir) in job["sandbox"]["hidden"]
    place.remove()
    assert list(settings.work_dir.iterdir()) == []


def test_only_plain_files_inside_the_folder_are_published(place: Staging, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    out = place.path / "out"
    out.mkdir()
    (out / "fine").write_text("fine")
    assert [file.path for file in place.store_folder("out")] == ["fine"]
    (out / "link").symlink_to(secret)
    with pytest.raises(StagingInvalid):
        place.store_folder("out")
    (out / "link").unlink()
    os.mkfifo(out / "pipe")
    with pytest.raises(StagingInvalid):
        place.store_folder("out")
    (out / "pipe").unlink()
    (place.path / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(StagingInvalid):
        place.store("elsewhere/secret")
    with pytest.raises(FileNotFoundError):
        place.store("out/absent")
    (place.path / "empty").mkdir()
    with pytest.raises(StagingInvalid):
        place.store_folder("empty")


def test_checkpoints_follow_what_the_runner_keeps(place: Staging, blobs: LocalBlobs) -> None:
    for name in ("a", "b"):
        (place.path / "checkpoints" / name).write_text(name)
    files = place.keep_checkpoint(["checkpoints/a", "checkpoints/b", "checkpoints/never"])
    assert [file["path"] for file in files] == ["checkpoints/a", "checkpoints/b"]
    assert all(blobs.size(file["sha256"]) == file["bytes"] for file in files)
    (place.path / "checkpoints" / "a").unlink()
    assert [file["path"] for file in place.keep_checkpoint([])] == ["checkpoints/b"]


def test_folders_of_dead_supervisors_are_swept_and_others_stay(place: Staging, settings: Settings) -> None:
    dead = settings.work_dir / "job_dead-1"
    dead.mkdir()
    note = {"host": os.uname().nodename, "supervisor": [2**22 - 1, 1]}
    (settings.work_dir / "job_dead-1.json").write_text(json.dumps(note))
    foreign = settings.work_dir / "job_foreign-1"
    foreign.mkdir()
    (settings.work_dir / "job_foreign-1.json").write_text(json.dumps({**note, "host": "elsewhere"}))
    assert staging.sweep(settings.work_dir) == 1
    assert not dead.exists()
    assert foreign.exists()
    assert place.path.exists()


def test_every_dataset_that_a_job_names_is_an_input(database: Database) -> None:
    general, domain, judge = (seeds.make_dataset(database, name=name) for name in ("a", "b", "c"))
    specification = {
        "calibration": {"dataset": general, "domain": {"dataset": domain}},
        "recovery": {"method": "none", "dataset": None},
        "evaluation": {"dataset": general, "domain": {"dataset": judge}},
    }
    job = seeds.make_job(database, seeds.make_model(database), specification=specification)
    inputs = find_inputs(database, seeds.claim(database, job))
    assert set(inputs.datasets) == {general, domain, judge}
    assert {file.path for file in inputs.datasets.values()} == {"data.jsonl"}

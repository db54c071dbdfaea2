"""Collection of blobs nobody refers to: nothing needed is deleted, nothing else stays."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.blobs import Blob, LocalBlobs
from service.db import Database
from service.files.repository import FileEntry, Files
from service.leases.repository import Leases, NewArtifact
from service.models.repository import Models
from service.storage.collector import Collected, collect_garbage
from service.storage.repository import referenced
from service.uploads.repository import Uploads
from tests import seeds

TENANT = "ten_default"
DAY = 24 * 3600.0


def put(blobs: LocalBlobs, content: bytes, *, old: bool = True) -> Blob:
    with blobs.writer() as writer:
        writer.write(content)
        blob = writer.commit()
    if old:
        os.utime(blobs.path(blob.sha256), (0, 0))
    return blob


def as_file(blob: Blob, path: str = "f") -> FileEntry:
    return FileEntry(path, blob.sha256, blob.bytes)


@pytest.fixture
def needed(database: Database, blobs: LocalBlobs) -> set[str]:
    """Blobs that are referred to in each of the possible ways."""
    model = seeds.make_model(database)
    running = seeds.claim(database, seeds.make_job(database, model))
    done = seeds.claim(database, seeds.make_job(database, model))
    names = ("model", "upload", "part", "checkpoint", "artifact", "report", "html")
    made = {name: put(blobs, name.encode()) for name in names}
    with database.session() as session:
        Models(session, TENANT).create(name="m", files=[as_file(made["model"])])
        uploads = Uploads(session, TENANT)
        announced = [{"path": "f", "bytes": 6, "sha256": None}]
        completed = uploads.create(files=announced, part_bytes=9, ttl_seconds=60)
        uploads.complete(completed.id, [as_file(made["upload"])])
        still_open = uploads.create(files=announced, part_bytes=9, ttl_seconds=60)
        uploads.put_part(still_open.id, 1, made["part"].sha256, 4, ttl_seconds=60)
        checkpoint = {"path": "baseline", "sha256": made["checkpoint"].sha256, "bytes": 10}
        Leases(session).save_checkpoint(running, {"key": "k", "files": [checkpoint]})
        Leases(session).succeed(
            done,
            result={},
            artifact=NewArtifact("safetensors", {}, [as_file(made["artifact"])]),
            report_sha256=made["report"].sha256,
            report_html_sha256=made["html"].sha256,
        )
    return {blob.sha256 for blob in made.values()}


def stored(blobs: LocalBlobs) -> set[str]:
    return {sha256 for sha256, _ in blobs.iterate()}


class TestCollection:
    def test_keeps_what_is_needed(self, database: Database, blobs: LocalBlobs, needed: set[str]) -> None:
        unneeded = {put(blobs, f"garbage {number}".encode()).sha256 for number in range(3)}
        with database.read() as session:
            assert referenced(session, needed | unneeded) == needed
        assert collect_garbage(database, blobs, DAY) == Collected(seen=10, deleted=3, leftovers=0)
        assert stored(blobs) == needed

    def test_keeps_what_is_young(self, database: Database, blobs: LocalBlobs) -> None:
        young = put(blobs, b"just stored, its row comes next", old=False)
        assert collect_garbage(database, blobs, DAY).deleted == 0
        assert stored(blobs) == {young.sha256}

    def test_takes_what_is_given_up(self, database: Database, blobs: LocalBlobs) -> None:
        kept, freed = put(blobs, b"kept"), put(blobs, b"freed")
        with database.session() as session:
            models = Models(session, TENANT)
            first = models.create(name="a", files=[as_file(kept, "1"), as_file(freed, "2")])
            models.create(name="b", files=[as_file(kept)])
            models.delete(first.id)
        assert collect_garbage(database, blobs, DAY).deleted == 1
        assert stored(blobs) == {kept.sha256}

    def test_takes_checkpoints_of_jobs_that_ended(self, database: Database, blobs: LocalBlobs) -> None:
        blob = put(blobs, b"checkpoint")
        lease = seeds.claim(database, seeds.make_job(database, seeds.make_model(database)))
        with database.session() as session:
            file = {"path": "p", "sha256": blob.sha256, "bytes": 10}
            Leases(session).save_checkpoint(lease, {"key": "k", "files": [file]})
        assert collect_garbage(database, blobs, DAY).deleted == 0
        with database.session() as session:
            Leases(session).fail(lease, "crashed", "it crashed")
        assert collect_garbage(database, blobs, DAY).deleted == 1

    def test_more_than_one_batch(
        self, database: Database, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.storage.collector._BATCH", 2)
        kept = put(blobs, b"kept")
        with database.session() as session:
            Files(session, TENANT).add("mdl_x", [as_file(kept)])
        for number in range(5):
            put(blobs, bytes([number]))
        assert collect_garbage(database, blobs, DAY).deleted == 5
        assert stored(blobs) == {kept.sha256}

    def test_content_stored_again_at_the_same_time_survives(
        self, database: Database, blobs: LocalBlobs
    ) -> None:
        stop = threading.Event()

        def collect() -> None:
            while not stop.is_set():
                collect_garbage(database, blobs, DAY)

        with ThreadPoolExecutor(2) as pool:
            collectors = [pool.submit(collect) for _ in range(2)]
            try:
                for number in range(60):
                    content = bytes([number])
                    old = put(blobs, content)
                    put(blobs, content, old=False)
                    assert blobs.size(old.sha256) == 1, number
            finally:
                stop.set()
            for collector in collectors:
                collector.result()

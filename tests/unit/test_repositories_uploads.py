"""Uploads and remembered requests, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import errors
from service.db import Database
from service.files.repository import Files
from service.leases.repository import Leases
from service.requests.repository import Requests, StoredRequest, forget_old_requests
from service.uploads.repository import Uploads
from tests import seeds

TENANT = "ten_default"
FILES = [{"path": "a", "bytes": 10, "sha256": None}]


def open_upload(database: Database, ttl: float = 60.0) -> str:
    with database.session() as session:
        return Uploads(session, TENANT).create(files=FILES, part_bytes=4, ttl_seconds=ttl).id


def put(database: Database, upload: str, number: int, sha256: str = "a" * 64) -> None:
    with database.session() as session:
        Uploads(session, TENANT).put_part(upload, number, sha256, 4, ttl_seconds=60)


def parts(database: Database, upload: str) -> list[tuple[int, str]]:
    with database.read() as session:
        return [(part.number, part.sha256) for part in Uploads(session, TENANT).parts(upload)]


class TestUploads:
    def test_parts_in_any_order_and_again(self, database: Database) -> None:
        upload = open_upload(database)
        for number in (3, 1, 2, 1):
            put(database, upload, number)
        put(database, upload, 3, "b" * 64)
        assert parts(database, upload) == [(1, "a" * 64), (2, "a" * 64), (3, "b" * 64)]

    def test_part_from_many_at_once(self, database: Database) -> None:
        upload = open_upload(database)
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(put, database, upload, number % 2) for number in range(16)]:
                done.result()
        assert parts(database, upload) == [(0, "a" * 64), (1, "a" * 64)]

    def test_complete(self, database: Database) -> None:
        upload = open_upload(database)
        put(database, upload, 1)
        entry = seeds.entry("a")
        with database.session() as session:
            row = Uploads(session, TENANT).complete(upload, [entry])
        assert (row.status, row.completed_at is not None) == ("completed", True)
        assert parts(database, upload) == []
        with database.session() as session:
            assert Files(session, TENANT).of(upload) == [entry]
            with pytest.raises(errors.UploadClosed):
                Uploads(session, TENANT).complete(upload, [entry])
        with pytest.raises(errors.UploadClosed):
            put(database, upload, 2)

    def test_abort(self, database: Database) -> None:
        upload = open_upload(database)
        put(database, upload, 1)
        with database.session() as session:
            assert Uploads(session, TENANT).abort(upload).status == "aborted"
        assert parts(database, upload) == []
        with pytest.raises(errors.UploadClosed):
            put(database, upload, 1)

    def test_expiry(self, database: Database) -> None:
        late, open_one = open_upload(database, ttl=-1), open_upload(database)
        with pytest.raises(errors.UploadExpired):
            put(database, late, 1)
        with database.session() as session:
            assert Leases(session).expire_uploads() == 1
            assert Leases(session).expire_uploads() == 0
            assert Uploads(session, TENANT).get(late).status == "expired"
            assert Uploads(session, TENANT).get(open_one).status == "open"
        with pytest.raises(errors.UploadExpired):
            put(database, late, 1)

    def test_part_moves_the_expiry(self, database: Database) -> None:
        upload = open_upload(database, ttl=1)
        put(database, upload, 1)
        with database.read() as session:
            row = Uploads(session, TENANT).get(upload)
        assert row.expires_at - row.created_at > 50_000_000


class TestRequests:
    def test_first_and_repeated(self, database: Database) -> None:
        with database.session() as session:
            assert Requests(session, TENANT).begin("key", "f1") is None
            Requests(session, TENANT).finish("key", 201, {"id": "x"})
        with database.session() as session:
            assert Requests(session, TENANT).begin("key", "f2") == StoredRequest("f1", 201, {"id": "x"})

    def test_failed_one_leaves_its_key_free(self, database: Database) -> None:
        with pytest.raises(RuntimeError), database.session() as session:
            Requests(session, TENANT).begin("key", "f1")
            raise RuntimeError
        with database.session() as session:
            assert Requests(session, TENANT).begin("key", "f2") is None

    def test_tenants_have_their_own(self, database: Database) -> None:
        other = seeds.other_tenant(database)
        with database.session() as session:
            assert Requests(session, TENANT).begin("key", "f1") is None
            assert Requests(session, other).begin("key", "f2") is None
            Requests(session, other).forget("key")
            assert Requests(session, other).get("key") is None
            assert Requests(session, TENANT).get("key") == StoredRequest("f1", None, None)

    def test_second_waits_for_the_first(self, database: Database) -> None:
        begun, may_end = threading.Event(), threading.Event()

        def first() -> None:
            with database.session() as session:
                Requests(session, TENANT).begin("key", "f")
                begun.set()
                assert may_end.wait(10)
                Requests(session, TENANT).finish("key", 201, None)

        def second() -> StoredRequest | None:
            assert begun.wait(10)
            with database.session() as session:
                return Requests(session, TENANT).begin("key", "f")

        with ThreadPoolExecutor(2) as pool:
            ends, answer = pool.submit(first), pool.submit(second)
            with pytest.raises(TimeoutError):
                answer.result(0.3)
            may_end.set()
            ends.result(10)
            assert answer.result(10) == StoredRequest("f", 201, None)

    def test_old_ones_are_forgotten(self, database: Database) -> None:
        with database.session() as session:
            Requests(session, TENANT).begin("key", "f")
            assert forget_old_requests(session) == 0
            assert forget_old_requests(session, -1) == 1

"""Blob stores: what every store does, on a local disk and in S3 (moto's server, over HTTP)."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from moto.server import ThreadedMotoServer

from service.blobs import CHUNK_BYTES, Blob, BlobStore, LocalBlobs, concatenate, open_blobs, verify
from service.blobs.s3 import S3Blobs, s3_store
from service.errors import BlobCorrupt, BlobMissing, StorageFull, Unavailable
from service.settings import Settings

SIZES = [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * CHUNK_BYTES + 7]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_settings(endpoint: str, home: Path, bucket: str) -> Settings:
    return Settings(
        home=home,
        blob_url=f"s3://{bucket}/some/prefix",
        s3_endpoint=endpoint,
        s3_access_key="key",
        s3_secret_key="secret",
    )


def make_bucket(endpoint: str, name: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=name)
    client.close()


@pytest.fixture
def s3(s3_endpoint: str, tmp_path: Path) -> S3Blobs:
    bucket = f"bucket-{secrets.token_hex(4)}"
    make_bucket(s3_endpoint, bucket)
    opened = open_blobs(s3_settings(s3_endpoint, tmp_path / "home", bucket))
    assert isinstance(opened, S3Blobs)
    return opened


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "local":
        return LocalBlobs(tmp_path / "blobs")
    found = request.getfixturevalue("s3")
    assert isinstance(found, S3Blobs)
    return found


def put(store: BlobStore, content: bytes, piece: int = 300_000) -> Blob:
    with store.writer() as writer:
        for start in range(0, len(content), piece):
            writer.write(content[start : start + piece])
        return writer.commit()


def leftovers(store: BlobStore) -> list[Path]:
    assert isinstance(store, LocalBlobs | S3Blobs)
    folder = store.root / "staging" if isinstance(store, LocalBlobs) else store.spool
    return list(folder.iterdir())


class TestEveryStore:
    @pytest.mark.parametrize("size", SIZES)
    def test_gives_back_what_was_written(self, store: BlobStore, size: int) -> None:
        content = secrets.token_bytes(size)
        blob = put(store, content)
        assert blob == Blob(hashlib.sha256(content).hexdigest(), size)
        assert store.size(blob.sha256) == size
        chunks = list(store.read(blob.sha256))
        assert b"".join(chunks) == content
        assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
        assert verify(store, blob.sha256) == size
        assert leftovers(store) == []

    def test_gives_back_ranges(self, store: BlobStore) -> None:
        content = secrets.token_bytes(3 * CHUNK_BYTES + 5)
        sha256 = put(store, content).sha256
        for start, length in [
            (0, 1),
            (5, CHUNK_BYTES),
            (CHUNK_BYTES - 1, 2),
            (len(content) - 1, 10),
            (7, None),
        ]:
            end = None if length is None else start + length
            assert b"".join(store.read(sha256, start, length)) == content[start:end]
        assert b"".join(store.read(sha256, len(content), 5)) == b""
        assert b"".join(store.read(sha256, 0, 0)) == b""

    def test_stores_equal_content_once(self, store: BlobStore) -> None:
        assert put(store, b"same") == put(store, b"same")
        assert [sha256 for sha256, _ in store.iterate()] == [hashlib.sha256(b"same").hexdigest()]

    def test_stores_files(self, store: BlobStore, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 5_000_000)
        blob = store.put_file(path)
        assert verify(store, blob.sha256) == 5_000_000
        assert path.exists()

    def test_materialises_read_only(self, store: BlobStore, tmp_path: Path) -> None:
        blob = put(store, b"content")
        target = tmp_path / "a" / "b" / "file"
        store.materialise(blob.sha256, target)
        assert target.read_bytes() == b"content"
        assert target.stat().st_mode & 0o777 == 0o444
        assert [path.name for path in target.parent.iterdir()] == ["file"]

    def test_says_what_is_missing(self, store: BlobStore, tmp_path: Path) -> None:
        unknown = "0" * 64
        assert store.size(unknown) is None
        assert store.delete(unknown) is False
        with pytest.raises(BlobMissing):
            store.read(unknown)
        with pytest.raises(BlobMissing):
            store.materialise(unknown, tmp_path / "file")
        with pytest.raises(BlobMissing):
            verify(store, unknown)

    @pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
    def test_takes_only_digests(self, store: BlobStore, name: str) -> None:
        with pytest.raises(ValueError, match="SHA-256"):
            store.size(name)

    def test_forgets_what_is_not_committed(self, store: BlobStore) -> None:
        with pytest.raises(RuntimeError), store.writer() as writer:
            writer.write(b"half")
            raise RuntimeError
        with store.writer() as writer:
            writer.write(b"half")
        assert list(store.iterate()) == []
        assert leftovers(store) == []

    def test_deletes(self, store: BlobStore) -> None:
        blob = put(store, b"content")
        assert store.delete(blob.sha256, minimum_age=60) is False
        assert store.delete(blob.sha256) is True
        assert store.size(blob.sha256) is None

    def test_knows_ages(self, store: BlobStore) -> None:
        put(store, b"content")
        assert [-2 < age < 60 for _, age in store.iterate()] == [True]

    def test_concatenates(self, store: BlobStore) -> None:
        parts = [put(store, secrets.token_bytes(size)) for size in (CHUNK_BYTES + 3, 5, 0, 2 * CHUNK_BYTES)]
        whole = concatenate(store, parts)
        assert b"".join(store.read(whole.sha256)) == b"".join(
            chunk for part in parts for chunk in store.read(part.sha256)
        )
        assert concatenate(store, parts[:1]) is parts[0]
        assert concatenate(store, []) == Blob(hashlib.sha256().hexdigest(), 0)

    def test_does_not_concatenate_a_part_of_another_size(self, store: BlobStore) -> None:
        part = put(store, b"content")
        with pytest.raises(BlobCorrupt):
            concatenate(store, [Blob(part.sha256, 3), part])
        assert leftovers(store) == []

    def test_many_writers_of_the_same_and_of_other_content(self, store: BlobStore) -> None:
        contents = [bytes([number % 3]) * 200_000 for number in range(12)]
        with ThreadPoolExecutor(6) as pool:
            blobs = list(pool.map(lambda content: put(store, content), contents))
        assert len({blob.sha256 for blob in blobs}) == 3 == len(list(store.iterate()))
        assert all(verify(store, blob.sha256) == 200_000 for blob in blobs)

    def test_removes_old_leftovers_only(self, store: BlobStore) -> None:
        writer = store.writer()
        writer.write(b"left")
        old = leftovers(store)[0]
        assert store.sweep(60) == 0
        os.utime(old, (0, 0))
        assert store.sweep(60) == 1
        assert leftovers(store) == []
        writer.abort()

    def test_checks_itself(self, store: BlobStore) -> None:
        store.check()
        assert list(store.iterate()) == []

    def test_full_disk_leaves_nothing(self, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        written = os.write

        def full(handle: int, data: bytes) -> int:
            if len(data) < 100:
                return written(handle, data)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.write", full)
        with store.writer() as writer:
            writer.write(b"first")
            with pytest.raises(StorageFull):
                writer.write(b"x" * 1000)
        assert leftovers(store) == []
        assert list(store.iterate()) == []


class TestS3:
    def test_keys_are_below_the_prefix(self, s3: S3Blobs, s3_endpoint: str, tmp_path: Path) -> None:
        blob = put(s3, b"content")
        bucket = s3._store.config["bucket"]
        whole = s3_store(
            s3_settings(s3_endpoint, tmp_path, bucket).model_copy(update={"blob_url": f"s3://{bucket}"})
        )
        keys = [item["path"] for batch in obstore.list(whole) for item in batch]
        assert keys == [f"some/prefix/objects/{blob.sha256[:2]}/{blob.sha256[2:4]}/{blob.sha256}"]

    def test_damage_is_found(self, s3: S3Blobs, tmp_path: Path) -> None:
        blob = put(s3, b"content")
        obstore.put(s3._store, s3.key(blob.sha256), b"CONTENT")
        with pytest.raises(BlobCorrupt):
            verify(s3, blob.sha256)
        with pytest.raises(BlobCorrupt):
            s3.materialise(blob.sha256, tmp_path / "work" / "file")
        assert list((tmp_path / "work").iterdir()) == []

    def test_no_bucket(self, s3_endpoint: str, tmp_path: Path) -> None:
        store = open_blobs(s3_settings(s3_endpoint, tmp_path, "no-such-bucket"))
        with pytest.raises(Unavailable):
            store.check()
        with pytest.raises(Unavailable):
            put(store, b"content")
        with pytest.raises(Unavailable):
            list(store.iterate())

    def test_no_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.blobs.s3._RETRY", {"max_retries": 0})
        store = open_blobs(s3_settings("http://127.0.0.1:1", tmp_path, "bucket"))
        with pytest.raises(Unavailable):
            store.check()
        with pytest.raises(Unavailable):
            store.size("0" * 64)
        with pytest.raises(Unavailable):
            put(store, b"content")
        assert leftovers(store) == []


def test_other_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file:// or s3://"):
        open_blobs(Settings(home=tmp_path, blob_url="ftp://host/folder"))

"""What a crash, a full disk and damage do to blobs on a local disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.blobs import Blob, LocalBlobs, verify
from service.errors import BlobCorrupt
from service.settings import Settings

PUT = "import sys; from pathlib import Path; from service.blobs import LocalBlobs\n" + (
    "with LocalBlobs(Path(sys.argv[1])).writer() as writer:\n"
    "    for _ in range(4): writer.write(b'x' * 100_000)\n"
    "    print(writer.commit().sha256)\n"
)


def put_in_child(
    root: Path, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PUT, str(root)],
        env={**os.environ, **environment},
        start_new_session=True,
        preexec_fn=before,
        capture_output=True,
        text=True,
    )


def objects(blobs: LocalBlobs) -> list[str]:
    return [sha256 for sha256, _ in blobs.iterate()]


class TestCrash:
    def test_before_the_rename_leaves_no_blob(self, tmp_path: Path) -> None:
        done = put_in_child(tmp_path, SECATEUR_FAULT="after_fsync:kill")
        blobs = LocalBlobs(tmp_path)
        assert done.returncode == -signal.SIGKILL
        assert objects(blobs) == []
        assert blobs.sweep(0) == 1

    def test_after_the_rename_leaves_the_whole_blob(self, tmp_path: Path) -> None:
        done = put_in_child(tmp_path, SECATEUR_FAULT="after_rename:kill")
        blobs = LocalBlobs(tmp_path)
        assert done.returncode == -signal.SIGKILL
        [sha256] = objects(blobs)
        assert verify(blobs, sha256) == 400_000
        assert blobs.sweep(0) == 0

    @pytest.mark.parametrize("point", ["after_fsync", "after_rename"])
    def test_again_afterwards_is_the_same_blob(self, tmp_path: Path, point: str) -> None:
        put_in_child(tmp_path, SECATEUR_FAULT=f"{point}:kill")
        done = put_in_child(tmp_path)
        assert done.returncode == 0, done.stderr
        assert objects(LocalBlobs(tmp_path)) == [done.stdout.strip()]

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        done = put_in_child(tmp_path, SECATEUR_FAULT="after_fsync:raise")
        blobs = LocalBlobs(tmp_path)
        assert done.returncode == 1
        assert objects(blobs) == []
        assert blobs.sweep(0) == 0


def test_limit_of_the_system_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))

    done = put_in_child(tmp_path, limit)
    blobs = LocalBlobs(tmp_path)
    assert "StorageFull" in done.stderr
    assert objects(blobs) == []
    assert blobs.sweep(0) == 0


class TestObjects:
    @pytest.fixture
    def blob(self, blobs: LocalBlobs) -> Blob:
        with blobs.writer() as writer:
            writer.write(b"content")
            return writer.commit()

    def test_are_read_only_files_under_their_digest(self, blobs: LocalBlobs, blob: Blob) -> None:
        path = blobs.path(blob.sha256)
        assert path == blobs.root / "objects" / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
        assert path.stat().st_mode & 0o777 == 0o444

    def test_damage_is_found(self, blobs: LocalBlobs, blob: Blob) -> None:
        path = blobs.path(blob.sha256)
        path.chmod(0o644)
        path.write_bytes(b"CONTENT")
        with pytest.raises(BlobCorrupt):
            verify(blobs, blob.sha256)

    def test_damage_is_repaired_by_storing_again(self, blobs: LocalBlobs, blob: Blob) -> None:
        path = blobs.path(blob.sha256)
        path.unlink()
        path.write_bytes(b"CONTENT")
        with blobs.writer() as writer:
            writer.write(b"content")
            writer.commit()
        assert verify(blobs, blob.sha256) == 7

    def test_storing_again_keeps_the_file_that_readers_hold(self, blobs: LocalBlobs, blob: Blob) -> None:
        before = blobs.path(blob.sha256).stat().st_ino
        with blobs.writer() as writer:
            writer.write(b"content")
            writer.commit()
        assert blobs.path(blob.sha256).stat().st_ino == before
        assert blobs.sweep(0) == 0

    def test_storing_again_makes_young(self, blobs: LocalBlobs, blob: Blob) -> None:
        os.utime(blobs.path(blob.sha256), (0, 0))
        assert next(blobs.iterate())[1] > 1000
        with blobs.writer() as writer:
            writer.write(b"content")
            writer.commit()
        assert blobs.delete(blob.sha256, minimum_age=1000) is False

    def test_reader_reads_to_the_end_though_deleted(self, blobs: LocalBlobs) -> None:
        with blobs.writer() as writer:
            writer.write(b"x" * 3_000_000)
            blob = writer.commit()
        chunks = blobs.read(blob.sha256)
        first = next(chunks)
        blobs.delete(blob.sha256)
        assert len(first) + sum(len(chunk) for chunk in chunks) == 3_000_000


def test_open_by_url_with_spaces(tmp_path: Path) -> None:
    from service.blobs import open_blobs

    root = tmp_path / "a folder" / "blobs"
    opened = open_blobs(Settings(home=tmp_path, blob_url=root.as_uri()))
    assert isinstance(opened, LocalBlobs)
    assert opened.root == root

"""Settings, ids and the tree of errors."""

from __future__ import annotations

import inspect
import re
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import errors, ids
from service.errors import Fault, ServiceError
from service.settings import Settings, default_home, is_loopback


class TestSettings:
    def test_everything_is_derived_from_home(self, tmp_path: Path) -> None:
        found = Settings(home=tmp_path)
        assert found.database_url == f"sqlite:///{tmp_path}/secateur.db"
        assert found.blob_url == f"file://{tmp_path}/blobs"
        assert found.work_dir == tmp_path / "work"
        assert (found.lease_seconds, found.heartbeat_seconds, found.max_attempts) == (60, 10, 5)

    def test_come_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECATEUR_HOME", str(tmp_path))
        monkeypatch.setenv("SECATEUR_DATABASE_URL", "postgresql://h/d")
        monkeypatch.setenv("SECATEUR_S3_SECRET_KEY", "hidden")
        found = Settings()
        assert (found.home, found.database_url) == (tmp_path, "postgresql://h/d")
        assert "hidden" not in repr(found)

    def test_home_follows_the_desktop_convention(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", "/data")
        assert default_home() == Path("/data/secateur")
        assert Settings().home == Path("/data/secateur")

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
    def test_no_authentication_on_loopback(self, host: str) -> None:
        assert is_loopback(host)
        assert Settings(auth="off", host=host).auth == "off"

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
    def test_authentication_elsewhere(self, host: str) -> None:
        assert not is_loopback(host)
        with pytest.raises(ValidationError, match="loopback"):
            Settings(auth="off", host=host)

    def test_lease_outlives_a_missed_heartbeat(self) -> None:
        with pytest.raises(ValidationError, match="half of lease_seconds"):
            Settings(lease_seconds=15, heartbeat_seconds=10)


class TestIds:
    def test_form(self) -> None:
        made = ids.new_id(ids.JOB)
        assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", made)
        assert ids.is_id(made, ids.JOB)
        assert not ids.is_id(made, ids.MODEL)

    @pytest.mark.parametrize("bad", ["", "job", "job_", "job_x", "job_" + "u" * 26, "job_" + "A" * 26])
    def test_other_text_is_no_id(self, bad: str) -> None:
        assert not ids.is_id(bad, ids.JOB)

    def test_is_a_uuid_of_version_7_of_now(self) -> None:
        value = ids.uuid7()
        assert (value >> 76) & 0xF == 7
        assert (value >> 62) & 0b11 == 0b10
        assert abs((value >> 80) - time.time_ns() // 1_000_000) < 1000

    def test_sort_by_creation_and_never_repeat(self) -> None:
        made = [ids.new_id(ids.JOB) for _ in range(5000)]
        assert made == sorted(set(made))

    def test_threads_never_repeat(self) -> None:
        made: list[str] = []
        threads = [
            threading.Thread(target=lambda: made.extend(ids.new_id("x") for _ in range(2000)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 12_000


def every_error() -> list[type[ServiceError]]:
    found = [item for _, item in inspect.getmembers(errors, inspect.isclass)]
    return [item for item in found if issubclass(item, ServiceError)]


class TestErrors:
    def test_codes_are_unique(self) -> None:
        codes = [error.code for error in every_error()]
        assert sorted(codes) == sorted(set(codes))

    @pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
    def test_say_what_happened(self, error: type[ServiceError]) -> None:
        assert error.__doc__
        assert re.fullmatch(r"[a-z0-9_]+", error.code)
        assert 400 <= error.status < 600
        assert str(error()) == error.title
        assert str(error("this case")) == "this case"

    @pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
    def test_are_in_the_tree_of_the_docstring(self, error: type[ServiceError]) -> None:
        assert errors.__doc__ is not None
        line = next(line for line in errors.__doc__.splitlines() if re.search(rf"\b{error.__name__}\b", line))
        if error is not errors.LeaseLost:
            assert line.split()[-2:] == [str(error.status), error.code]

    def test_carry_faults_and_headers(self) -> None:
        error = errors.TooManyRequests("wait", errors=[Fault("/a", "b")], headers={"Retry-After": "3"})
        assert (error.errors, error.headers) == ((Fault("/a", "b", "invalid"),), {"Retry-After": "3"})

"""Measurements between jobs: what is lent, what is taken back, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workers import cache
from workers.cache import Measurements

NAME = f"divergences-{'a' * 32}.json"
TIMES = f"layers-{'a' * 32}.json"


def _left(work: Path, name: str, text: str) -> Path:
    folder = work / cache.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_what_one_job_measured_the_next_one_of_the_tenant_gets(tmp_path: Path) -> None:
    _left(tmp_path / "one", NAME, '{"[16, [[0, 0.5]]]": 0.25}')
    _left(tmp_path / "one", TIMES, '{"[\\"Conv\\",[1,16,8],{}]": 1e-05}')
    _left(tmp_path / "one", f"latency-{'a' * 32}.json", '{"a": 1}')
    assert Measurements(tmp_path, "ten_a").take_back(tmp_path / "one") == 2
    for tenant, expected in (("ten_a", [NAME, TIMES]), ("ten_b", [])):
        work = tmp_path / f"two-{tenant}"
        work.mkdir()
        Measurements(tmp_path, tenant).lend(work)
        assert sorted(path.name for path in (work / cache.FOLDER).iterdir()) == expected
    assert json.loads((tmp_path / "two-ten_a" / cache.FOLDER / NAME).read_text()) == {
        "[16, [[0, 0.5]]]": 0.25
    }


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": "b"}', '{"a": NaN}', '{"a": -1}', '{"a": true, "b": null}', "[" * 100_000],
    ids=["empty", "list", "broken", "text", "nan", "negative", "null", "deep"],
)
def test_what_is_no_measurement_is_not_kept(tmp_path: Path, text: str) -> None:
    _left(tmp_path / "work", NAME, text)
    assert Measurements(tmp_path, "t").take_back(tmp_path / "work") == 0


def test_links_strange_names_and_large_files_are_not_kept(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"a": 1}')
    path = _left(tmp_path / "work", NAME, "")
    path.unlink()
    path.symlink_to(secret)
    _left(tmp_path / "work", "divergences-..json", '{"a": 1}')
    _left(tmp_path / "work", f"divergences-{'b' * 32}.json", json.dumps({"k" * cache.FILE_BYTES: 1}))
    os.mkfifo(tmp_path / "work" / cache.FOLDER / f"divergences-{'c' * 32}.json")
    assert Measurements(tmp_path, "t").take_back(tmp_path / "work") == 0


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_FILES", 3)
    measurements = Measurements(tmp_path, "t")
    for number in range(5):
        path = _left(tmp_path / str(number), f"divergences-{number:032x}.json", '{"a": 1}')
        measurements.take_back(path.parents[1])
        os.utime(tmp_path / cache.FOLDER / "t" / path.name, (number, number))
    work = tmp_path / "work"
    work.mkdir()
    measurements.lend(work)
    assert len(list((work / cache.FOLDER).iterdir())) == 3

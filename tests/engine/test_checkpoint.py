"""Finished steps: durable, whole or absent, bound to a key."""

from __future__ import annotations

import json

import pytest
import torch

from compression.checkpoint import Store, file_digest, job_key


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[str, list[str], dict]] = []

    def checkpoint(self, name, files, data):
        assert all(file.exists() for file in files)
        self.steps.append((name, [file.name for file in files], data))


def test_a_step_comes_back_as_it_was_and_is_told_of(tmp_path):
    heard = Heard()
    store = Store(tmp_path, "k", heard)
    tensors = {"a": torch.randn(3, 4).to(torch.bfloat16), "b": torch.arange(5, dtype=torch.uint8)}
    store.save("block-0000", tensors, {"x": 1.5})
    store.save("baseline", None, {"quality": None})
    again = Store(tmp_path, "k")
    loaded, data = again.load("block-0000")
    assert data == {"x": 1.5}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert again.load("baseline") == ({}, {"quality": None})
    assert again.names() == ["baseline", "block-0000"]
    assert heard.steps == [
        ("block-0000", ["block-0000.safetensors", "block-0000.json"], {"x": 1.5}),
        ("baseline", ["baseline.json"], {"quality": None}),
    ]


def test_steps_of_another_key_are_gone(tmp_path):
    Store(tmp_path, "one").save("block-0000", {"a": torch.ones(1)}, {})
    store = Store(tmp_path, "two")
    assert not store.has("block-0000")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        store.load("block-0000")


def test_what_a_kill_leaves_behind_is_no_step(tmp_path):
    store = Store(tmp_path, "k")
    store.save("whole", {"a": torch.ones(3)}, {})
    (tmp_path / "half.safetensors").write_bytes(store.path("whole").read_bytes())
    (tmp_path / "next.json.tmp").write_text("{")
    (tmp_path / "torn.json").write_text('{"key": "k", ')
    store.save("damaged", {"a": torch.ones(3)}, {})
    store.path("damaged").write_bytes(b"other")
    again = Store(tmp_path, "k")
    assert again.names() == ["whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.json", "whole.safetensors"]


def test_hooks_surround_every_rename(tmp_path):
    points: list[tuple[str, list[str]]] = []

    def hook(name: str) -> None:
        points.append((name, sorted(path.name for path in tmp_path.iterdir())))

    Store(tmp_path, "k", None, hook).save("s", {"a": torch.ones(1)}, {})
    assert points == [
        ("before_checkpoint_rename", ["s.safetensors.tmp"]),
        ("after_checkpoint_rename", ["s.safetensors"]),
        ("before_checkpoint_rename", ["s.json.tmp", "s.safetensors"]),
        ("after_checkpoint_rename", ["s.json", "s.safetensors"]),
    ]


def test_discard(tmp_path):
    store = Store(tmp_path, "k")
    store.save("a", {"x": torch.ones(1)}, {})
    store.save("b", None, {})
    store.discard(["a"])
    assert store.names() == ["b"]
    assert not store.path("a").exists()


def test_the_key_depends_on_everything_that_the_result_depends_on():
    base = ({"seed": 0, "recipe": "wanda"}, {"model.safetensors": "ab"}, {"torch": "2"})
    keys = {
        job_key(*base),
        job_key({"seed": 1, "recipe": "wanda"}, *base[1:]),
        job_key(base[0], {"model.safetensors": "cd"}, base[2]),
        job_key(*base[:2], {"torch": "3"}),
    }
    assert len(keys) == 4
    assert job_key({"recipe": "wanda", "seed": 0}, *base[1:]) == job_key(*base)


def test_the_record_says_the_hash_of_its_tensors(tmp_path):
    store = Store(tmp_path, "k")
    store.save("s", {"a": torch.ones(1)}, {})
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["sha256"] == file_digest(store.path("s"))
    assert record["key"] == "k"

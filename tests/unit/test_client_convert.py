"""`secateur convert`: pickles become safetensors with the same numbers; code in a pickle never runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compression.loading import convert as pickles


def convert(
    source: Path, destination: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secateur", "convert", str(source), str(destination), *more],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=90,
        check=False,
    )


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"layers.{n}.weight": torch.randn(4, 3, generator=generator) for n in range(3)}


def folder(path: Path, data: Any, config: dict[str, Any] | None = None) -> Path:
    path.mkdir()
    torch.save(data, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(config or {}))
    (path / "tokenizer.json").write_text("{}")
    (path / "training_args.bin").write_bytes(b"not weights")
    return path


def test_weights_keep_their_numbers_and_files_come_along(tmp_path: Path) -> None:
    made = {**weights(), "half.weight": torch.ones(2, 2, dtype=torch.bfloat16)}
    made["transposed.weight"] = torch.arange(6.0).view(2, 3).T
    made["embeddings.position_ids"] = torch.arange(4)
    done = convert(folder(tmp_path / "in", {"state_dict": made}), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")
    del made["embeddings.position_ids"]
    assert written.keys() == made.keys()
    assert all(torch.equal(written[name], made[name]) for name in made)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_tied_tensors_and_old_names(tmp_path: Path) -> None:
    table = torch.randn(5, 4)
    made = {
        "module.lm_head.weight": table,
        "module.embed_tokens.weight": table,
        "module.a.LayerNorm.gamma": torch.ones(4),
        "module.a.LayerNorm.beta": torch.zeros(4),
    }
    assert (
        convert(folder(tmp_path / "tied", made, {"tie_word_embeddings": True}), tmp_path / "a").returncode
        == 0
    )
    assert set(load_file(tmp_path / "a" / "model.safetensors")) == {
        "embed_tokens.weight",
        "a.LayerNorm.weight",
        "a.LayerNorm.bias",
    }
    assert (
        convert(folder(tmp_path / "two", made, {"tie_word_embeddings": False}), tmp_path / "b").returncode
        == 0
    )
    assert torch.equal(load_file(tmp_path / "b" / "model.safetensors")["lm_head.weight"], table)


def test_shards_are_read_together(tmp_path: Path) -> None:
    made = weights()
    for number, (name, tensor) in enumerate(made.items()):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-{number + 1:05}-of-00003.bin")
    assert convert(tmp_path, tmp_path / "out").returncode == 0
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == made.keys()


def test_masks_of_pruning_are_folded(tmp_path: Path) -> None:
    made = weights()
    masks = {name: (tensor > 0).float() for name, tensor in made.items()}
    left = {f"{name}_orig": tensor for name, tensor in made.items()}
    left |= {f"{name}_mask": mask for name, mask in masks.items()}
    left |= {"norm.attention_mask": torch.ones(2)}
    assert pickles.convert(folder(tmp_path / "pickled", left), tmp_path / "a") == 4
    # Halves may lie in different shards, and safetensors are folded, too.
    (tmp_path / "stored").mkdir()
    for number, ending in enumerate(("mask", "orig")):
        part = {name: tensor for name, tensor in left.items() if name.endswith(ending)}
        save_file(part, tmp_path / "stored" / f"model-{number + 1:05}-of-00002.safetensors")
    assert pickles.convert(tmp_path / "stored", tmp_path / "b") == 4
    for place in (tmp_path / "a", tmp_path / "b"):
        found = load_file(place / "model.safetensors")
        assert found.keys() == {*made, "norm.attention_mask"}
        assert all(torch.equal(found[name], made[name] * masks[name]) for name in made)
    del left["layers.1.weight_mask"]
    with pytest.raises(
        pickles.NotConvertible, match=r"layers\.1\.weight_orig, but no layers\.1\.weight_mask"
    ):
        pickles.convert(folder(tmp_path / "half", left), tmp_path / "c")
    with pytest.raises(pickles.NotConvertible, match="it can be uploaded as it is"):
        pickles.convert(tmp_path / "a", tmp_path / "d")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"a.weight": torch.ones(1), "b": Bomb(tmp_path / "ran")})
    done = convert(source, tmp_path / "out")
    assert done.returncode == 2
    assert "pytorch_model.bin is not a file of plain tensors" in done.stderr
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    assert convert(source, tmp_path / "out").returncode == 2
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a.weight": torch.ones(2, dtype=torch.int64)}, "a.weight has type torch.int64"),
        ({"note": "no tensors"}, "holds no tensors"),
        ([torch.ones(1)], "not tensors by name"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path: Path, data: Any, words: str) -> None:
    done = convert(folder(tmp_path / "in", data), tmp_path / "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_places_that_do_not_fit_are_named(tmp_path: Path) -> None:
    assert "no file or folder" in convert(tmp_path / "none", tmp_path / "out").stderr
    source = folder(tmp_path / "in", weights())
    assert "is there already" in convert(source, source).stderr
    (source / "pytorch_model.bin").write_bytes(b"garbage")
    assert "not a file of plain tensors" in convert(source, tmp_path / "out").stderr


def test_python_without_torch_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / "bin" / "python"
    done = convert(folder(tmp_path / "in", weights()), tmp_path / "out", "--python", str(python))
    assert done.returncode == 1
    assert "has no torch" in done.stderr
    assert "-m pip install torch safetensors" in done.stderr
    assert convert(tmp_path / "in", tmp_path / "out", "--python", str(tmp_path / "no")).returncode == 2

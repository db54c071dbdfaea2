"""Weights that are stored as [in, out] (GPT-2): masks, verification and recovery."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.anatomy import Inspection
from compression.checkpoint import Store
from compression.evaluation import stock
from compression.evaluation.types import GENERATION
from compression.export.masks import read_masks, write_masks
from compression.export.verify import zero_faults
from compression.loading.admission import admit_model, folder_sources
from compression.recovery.registry import recover
from compression.recovery.types import RecoveryContext
from tests.engine.test_recovery import Recorder, Samples
from tests.tiny_families import tiny_family


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return tiny_family(tmp_path / "dense", "GPT2LMHeadModel", vocab_size=264)


def two_of_four(folder: Path, target: Path) -> dict[str, Tensor]:
    """A copy in which every output keeps two of every four inputs; the masks, as the weights are stored."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    masks = {}
    for site in Inspection.from_json(admit_model(folder_sources(folder)).inspection).sites:
        groups = weights[site.name].T.abs().reshape(site.shape[0], -1, 4)
        order = groups.argsort(dim=-1, descending=True)
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :2], True)
        masks[site.name] = mask.reshape(site.shape).T.contiguous()
        weights[site.name] = torch.where(masks[site.name], weights[site.name], 0.0)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "secateur").mkdir()
    write_masks(target / "secateur" / "masks.safetensors", masks)
    manifest = '{"files": [], "structure": {"granularity": "2:4"}}'
    (target / "secateur" / "manifest.json").write_text(manifest)
    return masks


def test_groups_are_counted_along_the_inputs(dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    masks = two_of_four(dense, folder)
    for name, mask in read_masks(folder / "secateur" / "masks.safetensors"):
        assert torch.equal(mask, masks[name])
    assert zero_faults(folder) == []
    weights = load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    weights[name][:4, 3] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = zero_faults(folder)
    assert f"{name} has more than 2 non-zeros in a group of 4" in found
    assert f"{name} has weights where its mask has none" in found
    assert len(found) == 2


@pytest.mark.parametrize("method", ["lora", "distillation"])
def test_recovery_keeps_the_zeros(method: str, dense: Path, tmp_path: Path) -> None:
    masks = two_of_four(dense, tmp_path / "pruned")
    observer = Recorder()
    result = recover(
        RecoveryContext(
            method=method,
            options={"evaluate_every": 4, "save_every": 20, "batch_size": 4, "learning_rate": 3e-3},
            steps=8,
            seed=1,
            task=GENERATION,
            pruned=tmp_path / "pruned",
            dense=dense,
            output=tmp_path / "output",
            masks=masks,
            sites=tuple(masks),
            data=Samples(GENERATION),
            store=Store(tmp_path / "store", "key"),
            observer=observer,
        )
    )
    tensors = {name: value for path in result.files for name, value in load_file(path).items()}
    before = load_file(tmp_path / "pruned" / "model.safetensors")
    assert masks.keys() <= tensors.keys()
    for name, mask in masks.items():
        assert tensors[name].shape == before[name].shape
        assert not bool(tensors[name][~mask].any())
        assert not torch.equal(tensors[name], before[name])
    save_file(before | tensors, tmp_path / "pruned" / "model.safetensors", metadata={"format": "pt"})
    stock.load(tmp_path / "pruned", GENERATION)

"""Blocks compute with the weights that they are given, wherever these are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.engine.expert_models import tiny
from tests.engine.test_experts import batches, inspected


@pytest.mark.parametrize("layout", ["apart", "fused"])
def test_what_a_block_adopts_is_what_it_runs(layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", "MixtralForCausalLM", layout)
    streamed, reader = StreamedModel(folder), WeightReader(folder)
    states = streamed.start(batches())
    block = streamed.load_block(0)
    before = streamed.run_batch(block, states, 0)
    for site in inspected(folder).sites:
        if site.layer == 0 and ".experts." in site.name:
            block.adopt(site.name, torch.zeros_like(reader.tensor(site.name)).contiguous())
    after = streamed.run_batch(block, states, 0)
    assert not torch.equal(before, after)
    experts = block.experts
    assert experts is not None
    inside = [one for name, one in experts.module.named_parameters() if one.dim() == 3]
    assert inside
    assert not any(bool(one.any()) for one in inside)

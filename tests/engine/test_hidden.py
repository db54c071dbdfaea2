"""Hidden states on disk are the same, bit for bit, and so is everything that is computed from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compression.loading import hidden
from compression.loading.hidden import HiddenStates, Room
from compression.loading.streamed import StreamedModel
from tests.tiny_models import tiny_llama


@pytest.mark.parametrize("limit", [0, 300, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_list_of_tensors(limit: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 3 + number, 8, generator=generator).to(dtype) for number in range(4)]
    states = HiddenStates(tensors, Room(limit))
    assert len(states) == 4
    assert all(torch.equal(one, other) for one, other in zip(states, tensors, strict=True))
    before = states.snapshot()
    states[2] = tensors[2] * 2
    states[0] = torch.ones(5, 9, 8, dtype=dtype)
    states[3] = torch.zeros(1, 8, dtype=dtype)
    assert torch.equal(states[2], tensors[2] * 2)
    assert torch.equal(states[0], torch.ones(5, 9, 8, dtype=dtype))
    assert torch.equal(states[3], torch.zeros(1, 8, dtype=dtype))
    assert torch.equal(states[1], tensors[1])
    assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))
    assert [one.dtype for one in states[1:3]] == [dtype, dtype]


def test_a_model_gives_the_same_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamedModel(tiny_llama(tmp_path / "m", layers=3))
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(257, (2, 20), generator=generator)} for _ in range(3)]
    expected = list(model.outputs(batches))
    monkeypatch.setattr(hidden, "MEMORY_BYTES", 0)
    states = model.start(batches)
    assert states.hidden._file is not None
    for one, other in zip(model.outputs(batches), expected, strict=True):
        assert torch.equal(one, other)

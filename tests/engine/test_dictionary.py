"""Dictionaries and sparse codes against references in float64 that are made in other ways; packing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.dictionary import _coded, _refit, _solved, fitted
from compression.export.per_layer.dictionaries import packed
from compression.export.per_layer.modeling_secateur import DictionaryLinear, SparseCodes
from compression.low_rank import root, spectrum


def _case(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [out, in] and a root of the second moment of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    inputs = mix @ torch.randn(shape[1], 200, generator=generator, dtype=torch.float64)
    return weight, root((inputs @ inputs.T).float(), 1e-4, "w")


def _pursuit(row: np.ndarray, atoms: np.ndarray, bounds: list[int]) -> np.ndarray:
    """Orthogonal matching pursuit of one row, by least squares from the atoms themselves."""
    taken: list[int] = []
    code = np.zeros(len(atoms))
    for bound in bounds:
        left = np.abs(atoms @ (row - code @ atoms))
        order = [int(place) for place in np.argsort(-left, kind="stable") if place not in taken]
        taken += order[: bound - len(taken)]
        code = np.zeros(len(atoms))
        code[taken] = np.linalg.lstsq(atoms[taken].T, row, rcond=None)[0]
    return code


@pytest.mark.parametrize(("entries", "steps"), [(4, 4), (5, 2), (6, 3), (3, 8)])
def test_codes_are_those_of_matching_pursuit(entries: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(entries)
    rows = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    atoms = nn.functional.normalize(torch.randn(14, 8, generator=generator, dtype=torch.float64))
    found = _coded(rows, atoms, entries, steps)
    bounds = sorted({entries * (step + 1) // steps for step in range(steps)} - {0})
    wanted = np.stack([_pursuit(row, atoms.numpy(), bounds) for row in rows.numpy()])
    assert np.allclose(found.numpy(), wanted, rtol=0, atol=1e-7)


def test_refits_and_dictionaries_are_least_squares() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    atoms = nn.functional.normalize(torch.randn(10, 8, generator=generator, dtype=torch.float64))
    support = torch.rand(20, 10, generator=generator) < 0.25
    support[3] = False
    codes = _refit(rows, atoms, support)
    for row, code, used in zip(rows.numpy(), codes.numpy(), support.numpy(), strict=True):
        wanted = np.zeros(10)
        wanted[used] = np.linalg.lstsq(atoms.numpy()[used].T, row, rcond=None)[0]
        assert np.allclose(code, wanted, rtol=0, atol=1e-7)
    wanted = np.linalg.lstsq(codes.numpy(), rows.numpy(), rcond=None)[0]
    assert np.allclose(_solved(codes, rows).numpy(), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (40, 12)])
@pytest.mark.parametrize("seed", range(2))
def test_no_round_makes_the_error_on_the_inputs_larger(shape: tuple[int, int], seed: int) -> None:
    weight, scale = _case(shape, seed)
    found, errors = spectrum(weight, scale), list[float]()
    for rounds in range(6):
        down, up = fitted(weight, found, 14, 5, rounds, 3)
        assert (down.shape, up.shape) == ((14, shape[1]), (shape[0], 14))
        assert int((up != 0).sum(1).max()) <= 5
        errors.append(float(((weight - up @ down) @ scale).norm()))
        # The dictionary is the best one for the codes, however inputs are weighed.
        for change in torch.randn(3, *down.shape, dtype=torch.float64) * 1e-3:
            assert float(((weight - up @ (down + change)) @ scale).norm()) >= errors[-1] * (1 - 1e-9)
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]
    again = fitted(weight, found, 14, 5, 5, 3)
    assert all(torch.equal(one, other) for one, other in zip((down, up), again, strict=True))


def test_with_an_entry_for_every_atom_it_is_the_best_product() -> None:
    weight, scale = _case((24, 16))
    down, up = fitted(weight, spectrum(weight, scale), 6, 6, 0, 1)
    values = torch.linalg.svdvals(weight @ scale)
    assert float(((weight - up @ down) @ scale).norm()) == pytest.approx(float(values[6:].norm()), rel=1e-9)


def test_a_weight_of_zeros_and_atoms_that_none_takes() -> None:
    weight = torch.zeros(8, 6)
    weight[0, 0] = 1.0
    down, up = fitted(weight, spectrum(weight), 4, 2, 3, 2)
    assert torch.allclose(up @ down, weight.double(), atol=1e-12)


@pytest.mark.parametrize(("columns", "entries"), [(16, 5), (13, 4), (7, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_codes_multiply_as_they_are(columns: int, entries: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    codes = torch.zeros(9, columns, dtype=dtype)
    for row in range(8):
        # The last row is all zeros, and some have fewer entries than there is room for.
        places = torch.randperm(columns, generator=generator)[: entries - row % 2]
        codes[row, places] = torch.randn(len(places), generator=generator).to(dtype)
    values, mask = packed(codes, entries)
    assert (values.shape, values.dtype, mask.dtype) == ((9, entries), dtype, torch.uint8)
    assert mask.shape == (9, -(-columns // 8))
    module = SparseCodes(nn.Linear(3, 9), columns, entries).to(dtype)
    module.values.data, module.mask = values, mask
    assert module.bias is not None
    module.bias.data = torch.randn(9, generator=generator).to(dtype)
    inputs = torch.randn(2, 5, columns, generator=generator).to(dtype)
    found = module(inputs)
    assert torch.equal(found, nn.functional.linear(inputs, codes, module.bias))
    found.float().square().sum().backward()
    dense = codes.clone().requires_grad_()
    nn.functional.linear(inputs, dense, module.bias).float().square().sum().backward()
    places = ((mask[:, :, None].int() >> torch.arange(8)) & 1).flatten(1)[:, :columns].bool()
    assert places.sum(1).tolist() == [entries] * 9
    assert module.values.grad is not None
    assert dense.grad is not None
    assert torch.equal(module.values.grad, dense.grad[places].reshape(9, entries))
    assert DictionaryLinear(nn.Linear(3, 9, bias=False), columns, entries).up.bias is None

"""Magnitude's masks against torch's own pruners: bit for bit where no two magnitudes are equal.

Of equal magnitudes torch keeps whichever its `topk` happens to find, which differs between versions and
devices. Here the weight that comes first goes first, everywhere. Then the masks differ, but never in what was
removed: the magnitudes that stay are the same.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

from compression.anatomy.inspection import Site
from compression.cutting import PruneSettings, cut_site
from compression.granularity.base import parse_granularity

SHAPES = [(8, 16), (33, 40), (64, 176)]


def our_mask(weight: Tensor, text: str, remove: int, comparison: str = "layer") -> Tensor:
    settings = PruneSettings("magnitude", parse_granularity(text), remove, comparison=comparison)
    shape = (weight.shape[0], weight.shape[1])
    return cut_site(settings, Site("w", 0, shape, "up"), weight, None, remove).mask


def linear(weight: Tensor) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone())
    return module


def torch_mask(weight: Tensor, remove: int) -> Tensor:
    """The mask of `torch.nn.utils.prune`, over the whole weight."""
    return prune.l1_unstructured(linear(weight), "weight", remove).weight_mask.bool()


def sparsifier_mask(weight: Tensor, keep: int, group: int) -> Tensor:
    """The mask of `torch.ao.pruning` for n:m."""
    model = nn.Sequential(linear(weight))
    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, group), zeros_per_block=group - keep, norm=1
    )
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    return model[0].parametrizations.weight[0].mask.bool()


def distinct(shape: tuple[int, int], seed: int) -> Tensor:
    """A weight without two equal magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    count = shape[0] * shape[1]
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return ((torch.randperm(count, generator=generator) + 1) * signs).reshape(shape) / count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude_over_a_weight_is_that_of_torch(shape: tuple[int, int], sparsity: float, seed: int) -> None:
    weight = distinct(shape, seed)
    remove = round(sparsity * weight.numel())
    assert torch.equal(our_mask(weight, "unstructured", remove), torch_mask(weight, remove))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("shape", [(8, 16), (33, 40), (64, 176)])
def test_n_m_is_that_of_torch(shape: tuple[int, int], keep: int, group: int, seed: int) -> None:
    weight = distinct(shape, seed)
    remove = weight.numel() // group * (group - keep)
    ours = our_mask(weight, f"{keep}:{group}", remove)
    assert torch.equal(ours, sparsifier_mask(weight, keep, group))


@pytest.mark.parametrize("seed", range(3))
def test_equal_magnitudes_differ_in_place_only(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-3, 4, (24, 32), generator=generator).float()
    remove = 300
    for ours, theirs in (
        (our_mask(weight, "unstructured", remove), torch_mask(weight, remove)),
        (our_mask(weight, "2:4", weight.numel() // 2), sparsifier_mask(weight, 2, 4)),
    ):
        assert ours.sum() == theirs.sum()
        kept = [weight[mask].abs().sort().values for mask in (ours, theirs)]
        assert torch.equal(*kept)


def test_of_equal_magnitudes_the_first_goes() -> None:
    assert our_mask(torch.ones(1, 8), "2:4", 4).tolist() == [[False, False, True, True] * 2]
    assert our_mask(torch.ones(2, 2), "unstructured", 3).tolist() == [[False, False], [False, True]]

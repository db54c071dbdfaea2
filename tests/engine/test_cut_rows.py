"""Rows that are scored and compared alone are cut some at a time, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from compression.anatomy.inspection import Site
from compression.criteria.base import ScoresNotFinite, SiteStatistics
from compression.cutting import PruneSettings, cut_site, score
from compression.granularity.base import parse_granularity
from compression.granularity.rule import Rule

SITE = Site("layer.weight", 0, (37, 48), "up")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Five rows at a time."""
    monkeypatch.setattr("compression.granularity.base.PIECE", 5 * 48)
    yield


def weight(dtype: torch.dtype, zeros: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(SITE.shape, generator=generator)
    found[torch.rand(SITE.shape, generator=generator) < zeros] = 0.0
    found[7] = 0.0
    found[11, :20] = found[11, 20]  # ties
    return found.to(dtype)


@pytest.mark.parametrize("zeros", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("granularity", ["unstructured", "2:4", "3:16"])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_give_the_bits_of_the_whole(
    dtype: torch.dtype, criterion: str, granularity: str, zeros: float
) -> None:
    dense = weight(dtype, zeros)
    norms = torch.rand(48, generator=torch.Generator().manual_seed(5))
    norms[::2] = 0.0  # weights that score like those that are zero, which go before them
    statistics = SiteStatistics(norms, 10)
    pattern = parse_granularity(granularity)
    settings = PruneSettings(criterion, pattern, 801)
    remove = (
        801
        if granularity == "unstructured"
        else dense.numel() * (pattern.group - pattern.keep) // (pattern.group)
    )
    found = cut_site(settings, SITE, dense, statistics, remove)
    mask = Rule(pattern, remove, "row").mask(score(settings, SITE, dense, statistics), dense)
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.weight, dense.masked_fill(~mask, 0.0))
    assert not bool(torch.signbit(found.weight)[~mask].any())


def test_a_score_that_is_not_finite_is_named_by_its_place_in_the_whole_weight() -> None:
    dense = weight(torch.float32, 0.0)
    dense[23, 4] = 3e38
    statistics = SiteStatistics(torch.full((48,), 1e3), 10)
    settings = PruneSettings("wanda", parse_granularity("unstructured"), 801)
    with pytest.raises(ScoresNotFinite, match=r"layer.weight\[23, 4\] is inf"):
        cut_site(settings, SITE, dense, statistics, 801)

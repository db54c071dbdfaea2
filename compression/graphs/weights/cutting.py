"""Scores and cuts of one matrix of a graph, group by group where its groups read other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compression.anatomy.graph_sites import GraphSite
from compression.criteria.base import SiteStatistics
from compression.cutting import PruneSettings, cut_site, score
from compression.granularity.rule import Rule
from compression.updates.base import Cut

Known = Sequence[SiteStatistics] | None
"""What calibration knows of the inputs of each group; None where nothing was asked for."""


def scores(settings: PruneSettings, site: GraphSite, weight: Tensor, known: Known) -> Tensor:
    """The criterion's scores float32 [out, in]; rows of a group by the inputs of their group. Raises
    ScoresNotFinite."""
    if site.groups == 1:
        return score(settings, site, weight, known[0] if known else None)
    parts = _parts(site, weight, known)
    return torch.cat([score(settings, part, values, one) for part, values, one in parts])


def cut(
    settings: PruneSettings,
    site: GraphSite,
    weight: Tensor,
    known: Known,
    remove: int,
    *,
    has_bias: bool = False,
) -> Cut:
    """The pruned matrix [out, in], its mask, what to add to the bias; see `cut_site`.

    Of several groups the criterion says how many weights each loses, all rows in one comparison; updates then
    work in each group with its own inputs."""
    if site.groups == 1:
        return cut_site(settings, site, weight, known[0] if known else None, remove, has_bias=has_bias)
    mask = Rule(settings.pattern, remove, settings.comparison).mask(
        scores(settings, site, weight, known), weight
    )
    if not settings.update:
        return Cut(weight.masked_fill(~mask, 0.0), mask)
    cuts = [
        cut_site(settings, part, values, one, int((~kept).sum()), has_bias=has_bias)
        for (part, values, one), kept in zip(
            _parts(site, weight, known), mask.chunk(site.groups), strict=True
        )
    ]
    biases = [one.bias for one in cuts if one.bias is not None]
    bias = torch.cat(biases) if len(biases) == len(cuts) else None
    return Cut(torch.cat([one.weight for one in cuts]), torch.cat([one.mask for one in cuts]), bias)


def _parts(
    site: GraphSite, weight: Tensor, known: Known
) -> list[tuple[GraphSite, Tensor, SiteStatistics | None]]:
    """Each group as a site of its own, with its rows and its inputs."""
    return [
        (
            replace(site, name=f"{site.name}[{place}]", shape=(site.rows, site.shape[1]), groups=1),
            values,
            known[place] if known else None,
        )
        for place, values in enumerate(weight.chunk(site.groups))
    ]

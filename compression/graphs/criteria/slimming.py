"""Network slimming: the scale of the batch normalisation behind a channel."""

from __future__ import annotations

import numpy as np

from compression.graphs.criteria.base import CRITERIA, Scores, over_slices
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.evidence import Evidence


@CRITERIA.register
class BatchNormScale:
    """The mean of |gamma| over the batch normalisations of a unit (Liu et al. 2017, arXiv:1708.06519). A
    group without one says nothing; exporters fold most of them into convolutions."""

    name = "bn-scale"
    summary = "Scale of the batch normalisation behind a channel; groups without one stay whole."
    needs: frozenset[str] = frozenset()

    def scores(
        self, anatomy: Anatomy, group: Group, seed: int, evidence: Evidence | None = None
    ) -> Scores | None:
        scales = {node.inputs[1] for node in anatomy.graph.nodes if node.operator == "BatchNormalization"}
        sites = [site for site in group.sites if site.initializer in scales]
        if not sites:
            return None
        total: Scores = np.sum([over_slices(anatomy, site, np.abs) for site in sites], axis=0)
        count = sum(site.places.shape[1] for site in sites)
        mean: Scores = total / count
        return mean

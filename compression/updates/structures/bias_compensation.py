"""Bias compensation: what the removed units gave on average goes into the bias."""

from __future__ import annotations

import torch

from compression.criteria.units import PARTS
from compression.updates.structures import structure_updates
from compression.updates.units import StructureCut, StructureTask


@structure_updates.register
class BiasCompensation:
    """b + W E[x] - W' E[x_S]: the mean of every output stays what it was (An et al. 2023, equation 6; VBP's
    mean shift). W' is the weight as it is so far, so this goes last. Outputs that have no bias in the model
    stay."""

    name = "bias-compensation"
    summary = "Adds what the removed units gave on average to the bias, where the model has one."
    paper = "2312.11983"
    needs = frozenset({"means"})
    kinds = PARTS

    def apply(self, task: StructureTask, cut: StructureCut) -> StructureCut:
        """The same weight with the bias [out] that keeps E[y]. ValueError without means."""
        if not task.has_bias:
            return cut
        if task.means is None:
            raise ValueError("bias compensation needs the means of the inputs")
        means = task.means.to(cut.weight.device)
        kept = task.kept.to(cut.weight.device)
        lost = task.dense.to(torch.float64) @ means - cut.weight.to(torch.float64) @ means[kept]
        return StructureCut(cut.weight, lost.to(torch.float32))

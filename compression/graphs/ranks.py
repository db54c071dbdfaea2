"""The rank of feature maps."""

from __future__ import annotations

import numpy as np
import torch

from compression.graphs.batches import (
    Batches,
    class_weights,
    first_samples,
    sample_weights,
    samples_of,
)
from compression.graphs.evidence import Collecting, Floats, add_units, gate_values
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gates


def feature_ranks(module: GraphModule, gates: Gates, batches: Batches, how: Collecting) -> Floats:
    """By unit, the mean rank of its maps [height, width] at its gates over the first `rank_samples` samples,
    balanced over their classes if so asked (Lin et al. 2020, HRank, arXiv:2002.10179); not a number for a
    unit that no gate sees as a map."""
    used = first_samples(gates.anatomy.probe, batches, how.rank_samples)
    weights = class_weights(used) if how.balanced else None
    total = torch.zeros(gates.units, dtype=torch.float64)
    count = torch.zeros(gates.units, dtype=torch.float64)
    with torch.no_grad():
        for batch in used:
            weighed = sample_weights(batch, samples_of(gates.anatomy.probe, batch), weights)
            for gate, tensor in zip(gates.gates, gate_values(module, gates, batch), strict=True):
                if tensor.ndim == 4 and gate.axis == 1 and min(tensor.shape[2:]) > 1:
                    ranks = torch.linalg.matrix_rank(tensor.float()).double().cpu()
                    share = torch.ones(len(ranks), dtype=torch.float64)
                    if how.balanced:
                        share = weighed.repeat_interleave(len(ranks) // len(weighed))
                    add_units(total, gate, share @ ranks)
                    add_units(count, gate, share.sum().expand(len(gate.units)))
    found: Floats = torch.where(count > 0, total / count.clamp(min=1e-300), np.nan).numpy()
    return found

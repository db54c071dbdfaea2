"""The rank of feature maps."""

from __future__ import annotations

import numpy as np
import torch

from compression.graphs.batches import Batches, samples_of
from compression.graphs.evidence import Floats, add_units, gate_values
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gates


def feature_ranks(module: GraphModule, gates: Gates, batches: Batches, most: int) -> Floats:
    """By unit, the mean rank of its maps [height, width] at its gates over at most `most` samples (Lin et
    al. 2020, HRank, arXiv:2002.10179); not a number for a unit that no gate sees as a map."""
    total = torch.zeros(gates.units, dtype=torch.float64)
    count = torch.zeros(gates.units, dtype=torch.float64)
    left = most
    with torch.no_grad():
        for batch in batches:
            if left <= 0:
                break
            for gate, tensor in zip(gates.gates, gate_values(module, gates, batch), strict=True):
                if tensor.ndim == 4 and gate.axis == 1 and min(tensor.shape[2:]) > 1:
                    ranks = torch.linalg.matrix_rank(tensor[:left].float()).double()
                    add_units(total, gate, ranks.sum(0))
                    add_units(count, gate, torch.full((len(gate.units),), float(len(ranks))).double())
            left -= samples_of(gates.anatomy.probe, batch)
    found: Floats = torch.where(count > 0, total / count.clamp(min=1), np.nan).numpy()
    return found

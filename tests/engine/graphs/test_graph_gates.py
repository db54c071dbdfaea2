"""Closing the gates of units is the same as removing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gate, gated
from compression.graphs.graph import read_graph
from compression.graphs.masking import mask
from tests.engine.graphs.exports import NAMES, stored
from tests.engine.graphs.networks import samples


def half(found: Anatomy, skip: set[str]) -> dict[str, list[int]]:
    draw = np.random.default_rng(0)
    return {
        group.name: draw.permutation(group.units)[: group.units // 2].tolist()
        for group in found.groups
        if group.name not in skip
    }


@pytest.mark.parametrize("name", NAMES)
def test_closed_gates_remove_units(name: str) -> None:
    found = analyse(read_graph(stored(name)))
    gates = gated(found)
    recurrent = name.partition(".")[0] == "recurrent"
    assert bool(gates.silent) == recurrent
    removed = half(found, set(gates.silent))
    gone = np.zeros(gates.units, dtype=np.bool_)
    for group, units in removed.items():
        gone[gates.first[group] + np.array(units, dtype=np.int64)] = True
    module = GraphModule(gates.graph).eval()

    def closing(gate: Gate) -> None:
        shut = torch.from_numpy((gate.units >= 0) & gone[gate.units])
        kept = (~shut).float()

        def close(tensor: Tensor) -> Tensor:
            shape = [1] * tensor.ndim
            shape[gate.axis] = -1
            return tensor * kept.reshape(shape)

        module.watch(gate.value, close)

    for gate in gates.gates:
        closing(gate)
    x = samples(name.partition(".")[0], 3)
    with torch.no_grad():
        wanted = mask(found, removed).module().eval()(x)["y"]
        torch.testing.assert_close(module(x)["y"], wanted, rtol=1e-4, atol=1e-5)
    if not recurrent:
        assert removed


def test_gates_leave_the_network_as_it_is() -> None:
    found = analyse(read_graph(stored("option-a")))
    x = samples("option-a", 2)
    with torch.no_grad():
        made, wanted = GraphModule(gated(found).graph).eval()(x), GraphModule(found.graph).eval()(x)
    assert torch.equal(made["y"], wanted["y"])

"""LSTM, GRU and RNN, step by step, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.graphs.graph import Node
from compression.graphs.operators.table import Circumstances, Inputs, operator, refuse

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class Direction:
    """The weights of one direction: input [gates * hidden, input], recurrent [gates * hidden, hidden],
    the two biases [gates * hidden] of input and recurrence, and first states [batch, hidden]."""

    node: Node
    weight: Tensor
    recurrent: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    hidden: Tensor
    cell: Tensor


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node, x: Inputs, _: Circumstances) -> tuple[Tensor, ...]:
    directions = DIRECTIONS[node.text("direction", "forward")]
    expected = DEFAULTS[node.operator] * len(directions)
    chosen = node.attributes.get("activations", expected)
    if not isinstance(chosen, tuple) or tuple(str(one).lower() for one in chosen) != tuple(
        one.lower() for one in expected
    ):
        raise refuse(node, "activations other than the usual ones")
    if "clip" in node.attributes or node.integer("input_forget", 0) or x.optional(7) is not None:
        raise refuse(node, "clipping, a coupled gate or peepholes")
    if x.optional(4) is not None or node.integer("layout", 0):
        raise refuse(node, "sequences of different lengths, or the batch as first axis,")
    outputs, hiddens, cells = [], [], []
    for place, backwards in enumerate(directions):
        steps, hidden, cell = _walk(_direction(node, x, place), x[0].flip(0) if backwards else x[0])
        outputs.append(steps.flip(0) if backwards else steps)
        hiddens.append(hidden)
        cells.append(cell)
    made = torch.stack(outputs, 1), torch.stack(hiddens), torch.stack(cells)
    return made[: len(node.outputs)] if node.operator == "LSTM" else made[: min(len(node.outputs), 2)]


def _direction(node: Node, x: Inputs, place: int) -> Direction:
    weight, recurrent_weight = x[1][place], x[2][place]
    rows, width = recurrent_weight.shape
    bias, hidden, cell = x.optional(3), x.optional(5), x.optional(6)
    zeros = x[0].new_zeros(x[0].shape[1], width)
    both = x[0].new_zeros(2 * rows) if bias is None else bias[place]
    return Direction(
        node, weight, recurrent_weight, both[:rows], both[rows:],
        zeros if hidden is None else hidden[place], zeros if cell is None else cell[place],
    )  # fmt: skip


def _walk(one: Direction, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden states [time, batch, hidden], the last one, the last cell) over the steps of `inputs`."""
    step: Callable[[Direction, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = {
        "LSTM": _lstm, "GRU": _gru, "RNN": _rnn,
    }[one.node.operator]  # fmt: skip
    projected = inputs @ one.weight.T + one.input_bias
    hidden, cell, states = one.hidden, one.cell, []
    for now in projected.unbind(0):
        hidden, cell = step(one, now, hidden, cell)
        states.append(hidden)
    return torch.stack(states), hidden, cell


def _lstm(one: Direction, now: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    gates = now + hidden @ one.recurrent.T + one.recurrent_bias
    take, give, forget, new = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell


def _gru(one: Direction, now: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    width = hidden.shape[-1]
    gates = now[:, : 2 * width] + hidden @ one.recurrent[: 2 * width].T + one.recurrent_bias[: 2 * width]
    update, reset = torch.sigmoid(gates).chunk(2, -1)
    matrix, bias = one.recurrent[2 * width :], one.recurrent_bias[2 * width :]
    if one.node.integer("linear_before_reset", 0):
        new = torch.tanh(now[:, 2 * width :] + reset * (hidden @ matrix.T + bias))
    else:
        new = torch.tanh(now[:, 2 * width :] + (reset * hidden) @ matrix.T + bias)
    return (1 - update) * new + update * hidden, cell


def _rnn(one: Direction, now: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(now + hidden @ one.recurrent.T + one.recurrent_bias), cell

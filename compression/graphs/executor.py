"""A graph as a torch module: float initializers are its parameters, values can be watched and changed.

`GraphModule` runs the nodes in order and frees each value after its last use. Hooks by the name of a
value are called with what it is and may replace it; so masks are applied, and activations and their
gradients collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from compression.graphs.errors import GraphInvalid, OperatorUnknown
from compression.graphs.graph import Array, Graph
from compression.graphs.operators import Circumstances, check_known, execute

Hook = Callable[[Tensor], Tensor | None]
"""Gets a value when it is computed; what it returns, if not None, takes its place."""

FIXED_INPUTS = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "Resize": (1, 2), "Pad": (2,), "OneHot": (2,),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "Dropout": (1,),
}  # fmt: skip
"""Inputs that training does not change: running statistics, bounds, scales, fillings."""


def to_torch(array: Array, name: str) -> Tensor:
    """A copy of an initializer as a tensor; OperatorUnknown for an element type that torch has not."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).reshape(array.shape)
    try:
        return torch.from_numpy(np.array(array, copy=True, order="C")).reshape(array.shape)
    except TypeError as error:
        raise OperatorUnknown(
            f"initializer {name!r} has the element type {array.dtype}, which is not run here"
        ) from error


def to_numpy(tensor: Tensor, like: Array) -> Array:
    """A tensor as an initializer of the element type that it had."""
    plain = tensor.detach().to("cpu").contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(like.dtype).reshape(tuple(plain.shape))
    return plain.numpy().astype(like.dtype, copy=True)


def trained_initializers(graph: Graph) -> set[str]:
    """Names of the initializers that training changes: float, with axes, and not of an input that is
    fixed."""
    fixed = {
        node.inputs[place]
        for node in graph.nodes
        for place in FIXED_INPUTS.get(node.operator, ())
        if place < len(node.inputs)
    }
    return {
        name
        for name, array in graph.initializers.items()
        if array.ndim and (array.dtype.kind == "f" or array.dtype.name == "bfloat16") and name not in fixed
    }


class GraphModule(nn.Module):
    """Runs a graph. Call it with the inputs by name or in order; it gives the outputs by name.

    `hooks` are functions by the name of a value (inputs of the network and initializers included). In
    training mode BatchNormalization uses the statistics of the batch and moves its running ones.
    OperatorUnknown if the graph has an operator that is not run.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        check_known(graph.nodes)
        self.graph = graph
        self.hooks: dict[str, list[Hook]] = {}
        trained = trained_initializers(graph)
        self._stored: dict[str, str] = {}
        self._constants: dict[str, Tensor] = {}
        for place, (name, array) in enumerate(graph.initializers.items()):
            stored = f"initializer_{place}"
            self._stored[name] = stored
            tensor = to_torch(array, name)
            if name in trained:
                self.register_parameter(stored, nn.Parameter(tensor))
            elif tensor.is_floating_point():
                self.register_buffer(stored, tensor)
            else:
                # shapes and indices stay on the CPU, where they are read
                self._constants[name] = tensor
        self._frees = _last_uses(graph)

    def initializer(self, name: str) -> Tensor:
        """The tensor of an initializer: a parameter, a buffer or a constant."""
        if name in self._constants:
            return self._constants[name]
        found = getattr(self, self._stored[name])
        assert isinstance(found, Tensor)
        return found

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of the initializers."""
        found = {name: getattr(self, stored, None) for name, stored in self._stored.items()}
        return {name: one for name, one in found.items() if isinstance(one, nn.Parameter)}

    def watch(self, value: str, hook: Hook) -> Callable[[], None]:
        """Call `hook` with a value whenever it is computed; the function that comes back ends that."""
        self.hooks.setdefault(value, []).append(hook)
        return lambda: self.hooks[value].remove(hook)

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Tensor]:
        return self.run(dict(zip((one.name for one in self.graph.inputs), inputs, strict=False)) | named)

    def run(self, inputs: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The values `wanted` (the outputs, where None) for these inputs.

        GraphInvalid for an input that is missing or does not fit.
        """
        names = [one.name for one in self.graph.outputs] if wanted is None else list(wanted)
        kept = set(names)
        values: dict[str, Tensor] = {}
        for one in self.graph.inputs:
            if one.name not in inputs:
                raise GraphInvalid(f"the input {one.name!r} of the network is missing")
            values[one.name] = self._seen(one.name, inputs[one.name])
        device = next((one.device for one in values.values()), torch.device("cpu"))
        run = Circumstances(self.graph.opset, self.training)
        for place, node in enumerate(self.graph.nodes):
            arguments = [self._value(values, name) for name in node.inputs]
            made = execute(node, arguments, run)
            for name, tensor in zip(node.outputs, made, strict=False):
                if name:
                    # what is made from shapes alone (first states, say) is made where shapes are
                    placed = tensor.to(device) if tensor.is_floating_point() else tensor
                    values[name] = self._seen(name, placed)
            for name in self._frees[place]:
                if name not in kept:
                    values.pop(name, None)
        found = {name: self._value(values, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _seen(self, name: str, tensor: Tensor) -> Tensor:
        for hook in self.hooks.get(name, ()):
            changed = hook(tensor)
            tensor = tensor if changed is None else changed
        return tensor

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor | None:
        if not name:
            return None
        if name in values:
            return values[name]
        return self._seen(name, self.initializer(name))

    def to_graph(self) -> Graph:
        """The graph with the weights as they are now."""
        arrays = {
            name: to_numpy(self.initializer(name), array) if name in self._stored else array
            for name, array in self.graph.initializers.items()
        }
        return replace(self.graph, initializers=arrays)


def _last_uses(graph: Graph) -> list[list[str]]:
    """By node, the values that no later node reads."""
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in (*node.inputs, *node.outputs):
            last[name] = place
    found: list[list[str]] = [[] for _ in graph.nodes]
    for name, place in last.items():
        found[place].append(name)
    return found

"""Layer-wise relevance propagation through a graph by the epsilon rule.

The relevance of an output is the logit of the sample's class; each node hands what its output has on to
its inputs (Bach et al. 2015; for pruning Yeom et al. 2021, arXiv:1912.08881):

- linear in its data (convolution, product with a constant, sums, means, batch normalisation): an input x
  gets x * J^T (R / (z + e sign z)), z the output; what the bias has of it is absorbed;
- moving (reshape, concatenation, maximum, ...): the relevance goes where the value came from;
- a function of single elements (ReLU, ...): the relevance passes.

Products of two computed values, softmax and norms by statistics have no rule here and are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.graphs.batches import Batch, Batches, sample_weights, samples_of
from compression.graphs.errors import OperatorUnknown
from compression.graphs.evidence import Floats, add_units, by_sample
from compression.graphs.executor import GraphModule
from compression.graphs.gates import Gates
from compression.graphs.graph import Node
from compression.graphs.operators import Circumstances, execute

EPSILON = 1e-2
"""The stabiliser e, as a share of the root mean square of z over the batch."""
LINEAR = {
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "Mean",
    "ReduceMean", "ReduceSum", "Resize", "Sub", "Sum",
}  # fmt: skip
SCALING = {"Div", "Einsum", "Gemm", "MatMul", "Mul"}
"""Linear where all but one of the inputs are constant."""
MOVING = {
    "Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
    "MaxPool", "Pad", "ReduceMax", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
PASSING = {
    "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu",
    "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
}  # fmt: skip


def relevances(module: GraphModule, gates: Gates, batches: Batches, weights: Floats | None) -> Floats:
    """By unit, the mean over samples of the size of its relevance, summed over its gates and positions;
    float64 [units]. Without labels the largest logit is explained. OperatorUnknown for an operator without a
    rule on the way to the output."""
    total = torch.zeros(gates.units, dtype=torch.float64)
    weighed_samples = 0.0
    for batch in batches:
        samples = samples_of(gates.anatomy.probe, batch)
        weighed = sample_weights(batch, samples, weights)
        found = propagate(module, batch)
        made = torch.zeros(samples, gates.units, dtype=torch.float64)
        for gate in gates.gates:
            if gate.value in found:
                add_units(made, gate, by_sample(gate, found[gate.value], samples))
        total += weighed @ made.abs()
        weighed_samples += float(weighed.sum())
    mean: Floats = (total / weighed_samples).numpy()
    return mean


def propagate(module: GraphModule, batch: Batch) -> dict[str, Tensor]:
    """The relevance of every value that depends on the inputs and has some."""
    graph = module.graph
    computed = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if any(name in computed for name in node.inputs):
            computed.update(name for name in node.outputs if name)
    with torch.no_grad():
        names = [name for node in graph.nodes for name in node.outputs if name]
        values = dict(batch.inputs) | module.run(batch.inputs, names)
    found = {graph.outputs[0].name: _explained(values[graph.outputs[0].name], batch)}
    for node in reversed(graph.nodes):
        if any(name in found for name in node.outputs):
            _back(module, node, values, computed, found)
    return found


def _explained(logits: Tensor, batch: Batch) -> Tensor:
    if logits.ndim != 2:
        raise OperatorUnknown("relevance starts at logits [samples, classes]; the first output is none")
    chosen = logits.argmax(1) if batch.labels is None else batch.labels.to(logits.device)
    return torch.zeros_like(logits).scatter(1, chosen[:, None], logits.gather(1, chosen[:, None]))


def _back(
    module: GraphModule, node: Node, values: dict[str, Tensor], computed: set[str], found: dict[str, Tensor]
) -> None:
    arguments = [
        None if not name else values[name] if name in values else module.initializer(name).detach()
        for name in node.inputs
    ]
    data = [
        place
        for place, (name, one) in enumerate(zip(node.inputs, arguments, strict=True))
        if name in computed and one is not None and one.is_floating_point()
    ]
    if not data:
        return
    scaling = node.operator in SCALING and len(data) == 1
    multiplied = node.operator in SCALING or node.operator in {"Conv", "ConvTranspose", "BatchNormalization"}
    if node.operator in PASSING and data == [0]:
        parts = [found[node.value]]
    elif scaling or (node.operator in LINEAR and (data == [0] or not multiplied)):
        parts = _through(node, arguments, data, found, module.graph.opset, linear=True)
    elif node.operator in MOVING and (data == [0] or node.operator == "Concat"):
        parts = _through(node, arguments, data, found, module.graph.opset, linear=False)
    else:
        raise OperatorUnknown(f"{node.label}: relevance has no rule for this operator")
    for place, part in zip(data, parts, strict=True):
        name = node.inputs[place]
        found[name] = found[name] + part if name in found else part


def _through(
    node: Node,
    arguments: list[Tensor | None],
    data: list[int],
    found: dict[str, Tensor],
    opset: int,
    *,
    linear: bool,
) -> list[Tensor]:
    inputs = list(arguments)
    leaves = []
    for place in data:
        given = arguments[place]
        assert given is not None
        leaf = given.detach().clone().requires_grad_()
        inputs[place] = leaf
        leaves.append(leaf)
    with torch.enable_grad():
        outputs = execute(node, inputs, Circumstances(opset))
    pairs = [(made, found[name]) for name, made in zip(node.outputs, outputs, strict=False) if name in found]
    slopes = [relevance / _stable(made.detach()) if linear else relevance for made, relevance in pairs]
    got = torch.autograd.grad([made for made, _ in pairs], leaves, slopes, allow_unused=True)
    parts = [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(got, leaves, strict=True)]
    return [part * leaf.detach() for part, leaf in zip(parts, leaves, strict=True)] if linear else parts


def _stable(z: Tensor) -> Tensor:
    epsilon = EPSILON * z.square().mean().sqrt().clamp(min=torch.finfo(z.dtype).tiny)
    return z + torch.where(z >= 0, epsilon, -epsilon)

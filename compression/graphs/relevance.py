"""Layer-wise relevance propagation through a graph by the epsilon rule.

The relevance of an output is the logit of the sample's class; each node hands what its output has on to
its inputs (Bach et al. 2015; for pruning Yeom et al. 2021, arXiv:1912.08881):

- linear in its data (convolution, product with a constant, sums, means, batch normalisation): an input x
  gets x * J^T (R / (z + e sign z)), z the output; what the bias has of it is absorbed;
- moving (reshape, concatenation, maximum, ...): the relevance goes where the value came from;
- a function of single elements (ReLU, ...): the relevance passes.

Through attention and norms by the rules of AttnLRP (Achtibat et al. 2024, arXiv:2402.05602):

- a product of two computed values (matrices or elements): both factors get half of what the linear rule would
  give each; a product of two functions of the elements of one value (x * sigmoid(x)) is such a function too;
- softmax s of x: x * (R - s * sum R), the Taylor expansion at x;
- norms over channels, groups or positions, and quotients of computed values: linear, with the deviation (the
  divisor) as a constant.

Operators of recurrent layers, exponentials and what else is not named here have no rule and are refused.
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
from compression.graphs.relevance_rules import Functions, parts

SIZES = {"Shape", "Size"}
"""What is computed from these alone is a constant here."""


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
        if node.operator not in SIZES and any(name in computed for name in node.inputs):
            computed.update(name for name in node.outputs if name)
    functions = Functions(graph, computed)
    with torch.no_grad():
        names = [name for node in graph.nodes for name in node.outputs if name]
        values = dict(batch.inputs) | module.run(batch.inputs, names)
    found = {graph.outputs[0].name: _explained(values[graph.outputs[0].name], batch)}
    for node in reversed(graph.nodes):
        if not any(name in found for name in node.outputs):
            continue
        factors = [name for name in node.inputs if name in computed]
        source = functions.source(*factors) if node.operator == "Mul" and len(factors) == 2 else None
        if source is not None:
            _add(found, source, found[node.value])
        else:
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
    made = parts(node, arguments, data, found, module.graph.opset)
    for place, part in zip(data, made, strict=True):
        _add(found, node.inputs[place], part)


def _add(found: dict[str, Tensor], name: str, part: Tensor) -> None:
    found[name] = found[name] + part if name in found else part

"""Products of matrices: one axis is summed over, the axes before the last two run side by side (heads)."""

from __future__ import annotations

from compression.graphs.graph import Node
from compression.graphs.labels import ZEROED, Axis
from compression.graphs.rules.table import Analysis, rule


@rule("MatMul")
def matmul(analysis: Analysis, node: Node) -> None:
    left, right = node.inputs
    a, b = len(analysis.shape(left)), len(analysis.shape(right))
    analysis.contract(node, [(left, a - 1), (right, max(b - 2, 0))])
    rows: list[Axis] = []
    if a > 1:
        analysis.produce(left, a - 2)
        rows.append(analysis.of(left)[a - 2])
    if b > 1:
        analysis.produce(right, b - 1)
        rows.append(analysis.of(right)[b - 1])
    shape = analysis.shape(node.outputs[0])
    batch = len(shape) - len(rows)
    side = []
    for axis in range(batch):
        met = []
        for name, rank in ((left, a), (right, b)):
            place = axis - batch + rank - 2
            if place >= 0 and analysis.shape(name)[place] == shape[axis] and shape[axis] > 1:
                met.append(analysis.of(name)[place])
                analysis.produce(name, place)
        side.append(analysis.together(node, met))
        if len(met) > 1:
            analysis.labels.head(side[-1])
    analysis.put(node, side + rows)


@rule("Gemm")
def gemm(analysis: Analysis, node: Node) -> None:
    left, right = node.inputs[0], node.inputs[1]
    across, down = node.integer("transA", 0), node.integer("transB", 0)
    analysis.contract(node, [(left, 1 - across), (right, down)])
    analysis.produce(left, across)
    analysis.produce(right, 1 - down)
    made = [analysis.of(left)[across], analysis.of(right)[1 - down]]
    added = node.input(2)
    if added:
        shape, axes = analysis.shape(node.outputs[0]), analysis.of(added)
        for axis in range(2):
            place = axis - 2 + len(axes)
            if place >= 0 and analysis.shape(added)[place] == shape[axis] and shape[axis] > 1:
                made[axis] = analysis.together(node, [made[axis], axes[place]])
                analysis.labels.mark(axes[place], ZEROED if added in analysis.constants else 0)
    analysis.put(node, made)


@rule("Einsum")
def einsum(analysis: Analysis, node: Node) -> None:
    equation = node.text("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    plain = arrow and "." not in equation and all(len(set(term)) == len(term) for term in [*letters, result])
    if not plain:
        return analysis.freeze_all(node, "multiplies in a way that is not followed")
    found: dict[str, Axis] = {}
    for letter in dict.fromkeys(terms.replace(",", "")):
        sides = [
            (name, term.index(letter))
            for name, term in zip(node.inputs, letters, strict=True)
            if letter in term
        ]
        full = [side for side in sides if analysis.shape(side[0])[side[1]] > 1]
        if letter not in result:
            if full:
                analysis.contract(node, full)
            continue
        found[letter] = analysis.together(node, [analysis.of(name)[axis] for name, axis in full])
        for name, axis in full:
            analysis.produce(name, axis)
        if len(full) > 1:
            analysis.labels.head(found[letter])
    analysis.put(node, [found[letter] for letter in result])
    return None

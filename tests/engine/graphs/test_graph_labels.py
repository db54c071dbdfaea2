"""The bookkeeping of labels against plain sets and plain indexing, on whatever Hypothesis thinks of."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compression.graphs.cutting import cut
from compression.graphs.dependencies import analyse
from compression.graphs.errors import CutImpossible
from compression.graphs.executor import GraphModule
from compression.graphs.graph import read_graph
from compression.graphs.labels import PRODUCED, Labels
from compression.graphs.masking import mask
from compression.graphs.rules.reshape import blocks
from tests.engine.graphs.samples import floats, model_of, whole

COUNT = 12
places = st.integers(0, COUNT - 1)
pairs = st.lists(st.tuples(places, places), min_size=1, max_size=8)


@given(st.lists(pairs, max_size=6), st.lists(places, max_size=3), st.integers(0, 6))
def test_joined_and_frozen_sets_are_what_plain_sets_are(
    joins: list[list[tuple[int, int]]], frozen: list[int], when: int
) -> None:
    labels = Labels()
    ids = labels.new(COUNT)
    labels.mark(ids, PRODUCED)
    sets = [{one} for one in range(COUNT)]
    for step, batch in enumerate([*joins, []]):
        if step == min(when, len(joins)) and frozen:
            labels.freeze(ids[np.array(frozen)], "so it is")
        if batch:
            labels.join(ids[[one for one, _ in batch]], ids[[other for _, other in batch]])
        for one, other in batch:
            merged = sets[one] | sets[other]
            for member in merged:
                sets[member] = merged
    roots = labels.find(ids)
    for one in range(COUNT):
        assert {int(other) for other in np.flatnonzero(roots == roots[one])} == sets[one]
        assert bool(labels.reasons(ids[one : one + 1])[0]) == bool(sets[one] & set(frozen))
    free = {min(one) for one in sets if not one & set(frozen)}
    assert set(np.flatnonzero(labels.live()).tolist()) == free


@st.composite
def factorings(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes with the same number of elements."""
    primes = draw(st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=5))

    def grouped() -> list[int]:
        sizes, row = [], 1
        for prime in primes:
            row *= prime
            if draw(st.booleans()):
                sizes.append(row)
                row = 1
                if draw(st.booleans()):
                    sizes.append(1)
        return [*sizes, row]

    return grouped(), grouped()


@given(factorings())
def test_blocks_of_a_reshape_hold_the_same_elements(shapes: tuple[list[int], list[int]]) -> None:
    before, after = shapes
    found = blocks([(one, one) for one in before], [(one, one) for one in after])
    assert found is not None
    assert [axis for block in found for axis in block.before] == [
        axis for axis, one in enumerate(before) if one > 1
    ]
    assert [axis for block in found for axis in block.after] == [
        axis for axis, one in enumerate(after) if one > 1
    ]
    numbers = np.arange(math.prod(before))
    for block in found:
        # the place within a block is the same by the coordinates of either shape
        old = np.unravel_index(numbers, before)
        new = np.unravel_index(numbers, after)
        left = np.ravel_multi_index(
            [old[axis] for axis in block.before], [before[axis] for axis in block.before]
        )
        right = np.ravel_multi_index(
            [new[axis] for axis in block.after], [after[axis] for axis in block.after]
        )
        np.testing.assert_array_equal(left, right)


def test_sizes_that_do_not_match_have_no_blocks() -> None:
    assert blocks([(2, 3), (4, 4)], [(2, 2), (4, 6)]) == blocks([(2, 3), (4, 4)], [(2, 2), (4, 6)])
    assert blocks([(2, 2), (3, 3)], [(5, 5)]) is None


MOVES = ("concat", "split", "pad", "slice", "shuffle", "add", "gather", "flatten")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(MOVES), min_size=1, max_size=5), st.integers(0, 10**6))
def test_random_networks_are_cut_as_they_are_masked(moves: list[str], seed: int) -> None:
    """Channels that are moved about at random between two convolutions."""
    draw = np.random.default_rng(seed)
    nodes = [helper.make_node("Conv", ["x", "w"], ["v"])]
    weights = {"w": floats(6, 3, 1, 1, seed=seed)}
    value, width = "v", 6
    for place, move in enumerate(moves):
        made, width = _move(move, f"m{place}", value, width, weights, draw)
        nodes += made
        value = made[-1].output[0]
    weights["last"] = floats(2, width, 1, 1, seed=seed)
    nodes.append(helper.make_node("Conv", [value, "last"], ["y"]))
    graph = read_graph(model_of(nodes, {"x": floats(2, 3, 2, 2)}, ["y"], weights))
    found = analyse(graph)
    removed = {
        group.name: np.flatnonzero(draw.random(group.units) < 0.4)[: group.units - 1].tolist()
        for group in found.groups
    }
    x = torch.from_numpy(floats(4, 3, 2, 2, seed=1))
    try:
        small = cut(found, removed)
    except CutImpossible:  # a part of a split would be empty
        removed = {}
        small = cut(found, removed)
    with torch.no_grad():
        wanted = mask(found, removed).module()(x)["y"]
        torch.testing.assert_close(GraphModule(small)(x)["y"], wanted, rtol=1e-4, atol=1e-5)


def _move(
    move: str, name: str, value: str, width: int, weights: dict[str, np.ndarray], draw: np.random.Generator
) -> tuple[list[object], int]:
    """Nodes that do something with the channels of a value, and how many channels there are then."""
    make = helper.make_node
    if move == "concat":
        return [
            make("Relu", [value], [f"{name}a"]),
            make("Concat", [value, f"{name}a"], [name], axis=1),
        ], 2 * width
    if move == "split" and width > 1:
        first = int(draw.integers(1, width))
        weights[f"{name}s"] = whole(first, width - first)
        parts = [f"{name}a", f"{name}b"]
        return [
            make("Split", [value, f"{name}s"], parts, axis=1),
            make("Concat", parts[::-1], [name], axis=1),
        ], width
    if move == "pad":
        before, after = (int(one) for one in draw.integers(0, 3, 2))
        weights[f"{name}p"] = whole(0, before, 0, 0, 0, after, 0, 0)
        return [make("Pad", [value, f"{name}p"], [name])], width + before + after
    if move == "slice" and width > 2:
        first, last = sorted(int(one) for one in draw.choice(width + 1, 2, replace=False))
        weights[f"{name}s"], weights[f"{name}e"], weights[f"{name}x"] = whole(first), whole(last), whole(1)
        return [make("Slice", [value, f"{name}s", f"{name}e", f"{name}x"], [name])], last - first
    if move == "shuffle" and width % 2 == 0:
        weights[f"{name}r"], weights[f"{name}t"] = whole(0, 2, width // 2, 2, 2), whole(0, width, 2, 2)
        return [
            make("Reshape", [value, f"{name}r"], [f"{name}a"]),
            make("Transpose", [f"{name}a"], [f"{name}b"], perm=[0, 2, 1, 3, 4]),
            make("Reshape", [f"{name}b", f"{name}t"], [name]),
        ], width
    if move == "add":
        weights[f"{name}w"] = floats(width, width, 1, 1)
        return [
            make("Conv", [value, f"{name}w"], [f"{name}a"]),
            make("Add", [value, f"{name}a"], [name]),
        ], width
    if move == "gather":
        weights[f"{name}i"] = draw.permutation(width).astype(np.int64)
        return [make("Gather", [value, f"{name}i"], [name], axis=1)], width
    weights[f"{name}r"], weights[f"{name}t"] = whole(0, -1), whole(0, width, 2, 2)
    return [
        make("Reshape", [value, f"{name}r"], [f"{name}a"]),
        make("Reshape", [f"{name}a", f"{name}t"], [name]),
    ], width

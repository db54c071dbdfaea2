"""What a narrower residual stream costs, and how narrow it becomes beside fewer neurons and heads. Exact, and
no torch.

Everything outside the layers of a model that can lose hidden channels (embeddings, last norm, head) has an
axis of their width, so what is there is a multiple of it. Parameters and multiply-accumulates are linear in
each of the numbers of channels, neurons and heads while the others stay, so that one step less of each, and
of each together with others, says what any numbers cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.structures import COLUMNS, ROWS, Structure
from compression.specification import JobSpecification

ROTATION = "rotation"
HIDDEN = "hidden"
PER_LAYER = "per-layer"
"""The rotation that gives every norm a basis of its own."""


def turned(specification: JobSpecification) -> bool:
    """Whether the job turns the residual stream into another basis."""
    return bool(specification.options.get(ROTATION, "none") != "none")


def turned_by_layer(specification: JobSpecification) -> bool:
    """Whether every norm of the result reads the stream in a basis of its own."""
    return bool(specification.options.get(ROTATION) == PER_LAYER)


def with_skips(specification: JobSpecification, left: Inspection) -> Inspection:
    """The inspection of the result, `left` being that of its stock weights: where every norm has a basis of
    its own, two square weights as wide as the stream lie on the skip connections of each layer."""
    if not turned_by_layer(specification):
        return left
    each = 2 * left.hidden * left.hidden
    item = ITEM_SIZES[left.dtype]
    return replace(
        left,
        parameters=left.parameters + left.layers * each,
        bytes=left.bytes + left.layers * each * item,
        layer_parameters=left.layer_parameters + each,
        layer_bytes=left.layer_bytes + each * item,
        layer_macs=left.layer_macs + each,
    )


def subject(specification: JobSpecification, inspection: Inspection) -> Inspection:
    """The model that units are cut from: that which came, or, where its basis is turned and its head is tied
    to its embeddings, the one with a head of its own, since the two are turned differently."""
    if not (turned(specification) and inspection.tied_embeddings):
        return inspection
    added = inspection.vocabulary * inspection.hidden
    size = added * ITEM_SIZES[inspection.dtype]
    return replace(
        inspection,
        tied_embeddings=False,
        parameters=inspection.parameters + added,
        bytes=inspection.bytes + size,
        row_parameters=inspection.row_parameters + inspection.hidden,
        # A stored copy of the tied head becomes the head.
        other_bytes=inspection.other_bytes % size,
    )


def with_hidden(left: Inspection, width: int, whole: Inspection) -> Inspection:
    """The inspection `left`, of which other units may have gone, with a residual stream of so many channels.
    `whole` is that of the model with all units."""
    dense, layers = whole.hidden, whole.layers
    sites = tuple(_narrow(site, dense, width) for site in left.sites)
    # A channel's elements in a layer beside those of its weights: norms, biases, routers.
    beside = _channel(whole).parameters - sum(site.size // dense for site in _first(whole))
    in_layer = (sum(map(_size, left.sites)) - sum(map(_size, sites))) // layers + (dense - width) * beside
    outside = (whole.parameters - layers * whole.layer_parameters) // dense * (dense - width)
    item = ITEM_SIZES[left.dtype]
    return replace(
        left,
        hidden=width,
        sites=sites,
        prunable_parameters=sum(map(_size, sites)),
        parameters=left.parameters - layers * in_layer - outside,
        bytes=left.bytes - (layers * in_layer + outside) * item,
        layer_parameters=left.layer_parameters - in_layer,
        layer_bytes=left.layer_bytes - in_layer * item,
        token_macs=left.token_macs * width // dense,
        layer_macs=left.layer_macs * width // dense,
        row_parameters=left.row_parameters * width // dense,
        row_macs=left.row_macs * width // dense,
        structures=tuple(_resized(one, left, width, whole) for one in left.structures),
    )


def owned(whole: Inspection, kinds: Sequence[str]) -> int:
    """Parameters of all units of these kinds, of which hidden channels are one; what several own counts
    once."""
    total = _channel(whole).parameters * whole.hidden * whole.layers
    total += whole.parameters - whole.layers * whole.layer_parameters
    for one in whole.structures:
        if one.kind in kinds and one.kind != HIDDEN:
            biases = one.parameters - _across(one, whole) * whole.hidden
            total += whole.layers * one.count * biases
    return total


def _channel(inspection: Inspection) -> Structure:
    return next(one for one in inspection.structures if one.kind == HIDDEN)


def _first(inspection: Inspection) -> list[Site]:
    return [site for site in inspection.sites if site.layer == 0]


def _size(site: Site) -> int:
    return site.size


def _narrow(site: Site, dense: int, width: int) -> Site:
    rows, columns = site.shape
    if site.kind in COLUMNS.values():
        return replace(site, shape=(rows * width // dense, columns))
    return replace(site, shape=(rows, columns * width // dense))


def _resized(one: Structure, left: Inspection, width: int, whole: Inspection) -> Structure:
    if one.kind != HIDDEN:
        return replace(one, parameters=one.parameters - _across(one, whole) * (whole.hidden - width))
    counts = tuple(n for n in one.counts if n <= width)
    # Fewer neurons and heads leave a channel fewer elements.
    fewer = sum(site.size // whole.hidden for site in _first(whole)) - sum(
        site.size // whole.hidden for site in _first(left)
    )
    return replace(one, count=width, parameters=one.parameters - fewer, counts=counts)


def _across(one: Structure, whole: Inspection) -> int:
    """How many elements of a unit of another kind each hidden channel has in a layer."""
    if one.kind == "expert":
        return one.parameters // whole.hidden
    shared = ("key", "value") if whole.key_value_heads == 1 < whole.heads else ()
    kinds = {*ROWS[one.kind], COLUMNS[one.kind]}.difference(shared)
    found = [site for site in _first(whole) if site.kind in kinds]
    count = next(other.count for other in whole.structures if other.kind == one.kind)
    return sum(site.size // (count * whole.hidden) for site in found)


# -- numbers of several kinds together


@dataclass(frozen=True)
class Costs:
    """A figure that is linear in each of some numbers: `dense` are the numbers of all, `differences` the
    mixed differences at them by set of axes (one less of each)."""

    dense: tuple[int, ...]
    differences: Mapping[tuple[bool, ...], int]

    @classmethod
    def of(cls, figure: Callable[[tuple[int, ...]], int], dense: tuple[int, ...]) -> Costs:
        """The costs of a figure, from its values at all numbers and one less of each."""
        corners = {less: figure(_less(dense, less)) for less in product((False, True), repeat=len(dense))}
        found: dict[tuple[bool, ...], int] = {}
        for chosen in corners:
            subsets = [less for less in corners if all(c or not d for c, d in zip(chosen, less, strict=True))]
            found[chosen] = sum((-1) ** sum(less) * corners[less] for less in subsets)
        return cls(dense, found)

    def figure(self, numbers: tuple[int, ...]) -> int:
        """The figure at these numbers."""
        total = 0
        for chosen, difference in self.differences.items():
            term = difference
            for axis, used in enumerate(chosen):
                term *= numbers[axis] - self.dense[axis] if used else 1
            total += term
        return total


def _less(dense: tuple[int, ...], less: tuple[bool, ...]) -> tuple[int, ...]:
    return tuple(count - one for count, one in zip(dense, less, strict=True))


def together(
    figure: Callable[[tuple[int, ...]], int],
    steps: Sequence[Sequence[int]],
    allowed: Callable[[tuple[int, ...]], bool],
    wanted: float,
    *,
    nearest: bool,
) -> tuple[int, ...] | None:
    """The numbers (of `steps`, ascending, all of them last) with which a figure meets what is wanted: to
    within a step of the first kind (`nearest`), or from below. Of all such numbers of the other kinds those
    are taken whose shares and that of the first are nearest to each other (more units, of equals). None if
    there are none, or nothing would go."""
    dense = tuple(one[-1] for one in steps)
    costs = Costs.of(figure, dense)
    gap = max((after - before for before, after in pairwise(steps[0])), default=1)
    best: tuple[tuple[float, tuple[int, ...]], tuple[int, ...]] | None = None
    for rest in product(*steps[1:]):
        if not allowed((dense[0], *rest)):
            continue
        above = costs.figure((dense[0], *rest))
        each = above - costs.figure((dense[0] - 1, *rest))
        for n in _near(steps[0], dense[0] - (above - wanted) / each):
            numbers = (n, *rest)
            missed = above - (dense[0] - n) * each - wanted
            if numbers == dense or abs(missed) > each * gap / (2 if nearest else 1):
                continue
            if missed > 0 and not nearest:
                continue
            shares = [number / count for number, count in zip(numbers, dense, strict=True)]
            ranked = (max(shares) - min(shares), tuple(-number for number in numbers[::-1]))
            best = (ranked, numbers) if best is None or ranked < best[0] else best
    return None if best is None else best[1]


def _near(steps: Sequence[int], place: float) -> Iterator[int]:
    """The steps on either side of a place."""
    after = bisect_right(steps, place)
    yield from steps[max(0, after - 1) : after + 1]

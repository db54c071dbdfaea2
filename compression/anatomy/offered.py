"""What a family's groups of units come to: the structures that an inspection lists. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence

from compression.anatomy.structures import Group, Kind, Structure, unit_parameters

Shapes = Mapping[str, tuple[int, ...]]


def structure_of(
    kind: Kind,
    groups: Sequence[Group],
    shapes: Shapes,
    outside: Container[str],
    allowed: tuple[int, ...] = (),
) -> Structure:
    """The structure of a kind, from all groups of it. `shapes` are those of everything that units are cut
    from, by name; what is `outside` the layers (tables that the layers of a stack share) counts for the
    whole alone. `allowed` are the numbers that the classes take (empty: any); of these, those are offered
    that give every group a whole number."""
    layers: Counter[int] = Counter()
    whole = 0
    for group in groups:
        layers[group.layer] += group.count * unit_parameters(shapes, group, outside)
        whole += group.count * unit_parameters(shapes, group)
    first = groups[0]
    count = first.of or first.count
    parameters = layers[first.layer] // count
    alike = whole == len(layers) * count * parameters
    return Structure(kind, count, parameters, _counts(count, groups, allowed), 0 if alike else whole)


def _counts(count: int, groups: Sequence[Group], allowed: tuple[int, ...]) -> tuple[int, ...]:
    shares = {(group.count, group.of) for group in groups if group.count % (group.of or group.count)}
    if not shares:
        return allowed
    possible = allowed or range(1, count + 1)
    return tuple(n for n in possible if all(n * own % of == 0 for own, of in shares))

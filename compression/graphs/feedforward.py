"""Which groups of a graph are hidden neurons of feed-forward blocks."""

from __future__ import annotations

from collections.abc import Mapping

from compression.graphs.dependencies import Anatomy, Group, Site
from compression.graphs.graph import Node

Readers = Mapping[str, list[tuple[Node, int]]]


def hidden_neurons(anatomy: Anatomy) -> set[str]:
    """The names of groups whose units one matrix makes and one other reads, with nothing but vectors and
    functions of single elements between them: hidden layers of MLPs, also where their matrices are written as
    convolutions 1x1."""
    readers = anatomy.graph.consumers()
    return {group.name for group in anatomy.groups if not group.heads and _between(anatomy, group, readers)}


def _between(anatomy: Anatomy, group: Group, readers: Readers) -> bool:
    wide = [site for site in group.sites if not _vector(anatomy, site)]
    roles = sorted(site.role for site in wide)
    return roles == ["consumer", "producer"] and all(_matrix(anatomy, site, readers) for site in wide)


def _vector(anatomy: Anatomy, site: Site) -> bool:
    array = anatomy.graph.initializers[site.initializer]
    return bool(array.size == array.shape[site.axis])


def _matrix(anatomy: Anatomy, site: Site, readers: Readers) -> bool:
    """Whether a product with the whole of a matrix is all that reads an initializer."""
    array = anatomy.graph.initializers[site.initializer]
    found = readers.get(site.initializer, [])
    if len(found) != 1 or found[0][1] != 1 or site.places.shape[1] != 1:
        return False
    node = found[0][0]
    if node.operator == "Conv":
        return node.integer("group", 1) == 1 and set(array.shape[2:]) == {1}
    return array.ndim == 2 and node.operator in {"Gemm", "MatMul"}

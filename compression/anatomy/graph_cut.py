"""What a job takes from the single weights of a graph, as far as its structure tells. Exact, and no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compression.anatomy.budget import removals, removed_in_all, selected_sites
from compression.anatomy.graph_sites import GraphSite
from compression.anatomy.inspection import Inspection
from compression.anatomy.patterns import ignored
from compression.specification import JobSpecification

LISTED = 5


def pruned_part(specification: JobSpecification, inspection: Inspection) -> Inspection:
    """The inspection with the sites alone that the granularity fits and no pattern names: those that the
    target counts over."""
    granularity = specification.structure.granularity
    left = ignored(specification.structure.ignore, (site.name for site in inspection.sites))
    kept = [site for site in inspection.sites if isinstance(site, GraphSite) and site.name not in left]
    return replace(inspection, sites=tuple(site for site in kept if site.fits(granularity)))


def weights_cut(specification: JobSpecification, inspection: Inspection) -> dict[str, Any]:
    """How many weights each site loses (None where an allocation decides while running), and all of them."""
    part = pruned_part(specification, inspection)
    counts = removals(specification, part)
    rows = [
        {
            "name": site.name,
            "shape": list(site.shape),
            "keep": None if (gone := counts[site.name]) is None else site.size - gone,
            "remove": gone,
        }
        for site in selected_sites(specification, part)
    ]
    return {"sites": rows, "weights_removed": removed_in_all(specification, part), "layers_removed": None}


def weights_asked(specification: JobSpecification, inspection: Inspection) -> int:
    """Weights that may stay of those that the target counts over."""
    part = pruned_part(specification, inspection)
    return sum(site.size for site in part.sites) - removed_in_all(specification, part)


def left_whole(specification: JobSpecification, inspection: Inspection) -> list[str]:
    """What a plan says of matrices that the granularity does not fit."""
    granularity = specification.structure.granularity
    odd = [site for site in inspection.sites if isinstance(site, GraphSite) and not site.fits(granularity)]
    if not odd:
        return []
    named = ", ".join(site.name for site in odd[:LISTED])
    more = f" and {len(odd) - LISTED} more" if len(odd) > LISTED else ""
    share = sum(site.size for site in odd) / sum(site.size for site in inspection.sites)
    return [
        f"{granularity} does not divide the channels of {named}{more} ({share:.1%} of the weights): they "
        "stay whole, and the target counts over the others."
    ]

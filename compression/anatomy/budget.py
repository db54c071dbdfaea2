"""From a target to numbers of weights and layers. Exact, and no torch.

Sparsity is a fraction of the sites that may be pruned: those that no `structure.ignore` pattern names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

from compression.anatomy import count_macs
from compression.anatomy.inspection import ITEM_SIZES, Inspection, Site
from compression.anatomy.patterns import ignored
from compression.densities import Bounds, site_bounds
from compression.specification import JobSpecification, block, n_m, quantity

DECODER_LENGTH = 2048
ENCODER_LENGTH = 512


def remove_count(sparsity: float, total: int) -> int:
    """round(sparsity * total), halves up, of the decimal number that was written: 0.1 means a tenth."""
    return int((Decimal(repr(sparsity)) * total).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def uniform_counts(
    sizes: Mapping[str, int], remove_total: int, bounds: Mapping[str, Bounds] | None = None
) -> dict[str, int]:
    """Shares of `remove_total` in proportion to `sizes`, each within one of it; their sum is exact.

    Where rounding would break a bound, another site gives or takes the one weight. The bounds (None: any
    share may go) are those of the same densities for all sites and have room for `remove_total`.
    """
    counts = _shares(sizes, remove_total)
    if bounds is None:
        return counts
    counts = {name: min(max(count, bounds[name].least), bounds[name].most) for name, count in counts.items()}
    left = remove_total - sum(counts.values())
    step = 1 if left > 0 else -1
    total = sum(sizes.values())

    def shortfall(name: str) -> int:
        return step * (sizes[name] * remove_total - counts[name] * total)

    while left:
        free = [name for name in sizes if bounds[name].least <= counts[name] + step <= bounds[name].most]
        for name in sorted(free, key=shortfall, reverse=True)[: abs(left)]:
            counts[name] += step
            left -= step
    return counts


def _shares(sizes: Mapping[str, int], remove_total: int) -> dict[str, int]:
    total = sum(sizes.values())
    counts: dict[str, int] = {}
    seen = given = 0
    for site, size in sizes.items():
        seen += size
        upto = (2 * seen * remove_total + total) // (2 * total)
        counts[site] = upto - given
        given = upto
    return counts


def default_length(inspection: Inspection) -> int:
    """Tokens of a sequence where nothing is said: the context, at most 2048 (encoders 512); all of an
    image."""
    if inspection.image is not None:
        return inspection.context
    limit = DECODER_LENGTH if inspection.task == "text-generation" else ENCODER_LENGTH
    return min(inspection.context, limit)


def stated_length(specification: JobSpecification, inspection: Inspection) -> int:
    """Tokens of the sequence for which multiply-accumulates are counted; an image has always as many."""
    if inspection.image is not None:
        return inspection.context
    calibration = specification.calibration
    return (
        specification.evaluation.sequence_length
        or (calibration.sequence_length if calibration else None)
        or default_length(inspection)
    )


def selected_sites(specification: JobSpecification, inspection: Inspection) -> list[Site]:
    """The sites that no ignore pattern names, in the model's order."""
    left_alone = ignored(specification.structure.ignore, (site.name for site in inspection.sites))
    return [site for site in inspection.sites if site.name not in left_alone]


def removals(specification: JobSpecification, inspection: Inspection) -> dict[str, int | None]:
    """How many weights each selected site loses; None where an allocation decides while running."""
    sizes = {site.name: site.size for site in selected_sites(specification, inspection)}
    pair = n_m(specification.structure.granularity)
    if pair is not None:
        n, m = pair
        return {name: size // m * (m - n) for name, size in sizes.items()}
    if specification.options.get("allocation", "uniform") != "uniform":
        return dict.fromkeys(sizes)
    rows, columns = block(specification.structure.granularity) or (1, 1)
    unit = rows * columns
    blocks = {name: size // unit for name, size in sizes.items()}
    least, most = (
        specification.options.get(name, default)
        for name, default in (("minimum_density", 0.0), ("maximum_density", 1.0))
    )
    bounds = {name: site_bounds(count, least, most) for name, count in blocks.items()}
    counts = uniform_counts(blocks, removed_in_all(specification, inspection) // unit, bounds)
    return {name: count * unit for name, count in counts.items()}


def removed_in_all(specification: JobSpecification, inspection: Inspection) -> int:
    """How many weights go in all, for granularities of single weights; of blocks, whole ones only."""
    sites = selected_sites(specification, inspection)
    pair = n_m(specification.structure.granularity)
    if pair is not None:
        n, m = pair
        return sum(site.size // m * (m - n) for site in sites)
    total = remove_count(specification.target.sparsity or 0.0, sum(site.size for site in sites))
    rows, columns = block(specification.structure.granularity) or (1, 1)
    return total // (rows * columns) * (rows * columns)


def without_layers(inspection: Inspection, removed: int) -> Inspection:
    """The inspection of the model with `removed` layers fewer (all layers have the same sizes)."""
    left = inspection.layers - removed
    sites = tuple(site for site in inspection.sites if site.layer < left)
    return replace(
        inspection,
        layers=left,
        sites=sites,
        prunable_parameters=sum(site.size for site in sites),
        parameters=inspection.parameters - removed * inspection.layer_parameters,
        bytes=inspection.bytes - removed * inspection.layer_bytes,
        granularities=tuple(name for name in inspection.granularities if name != "layer" or left > 1),
    )


def weight_bytes(inspection: Inspection, dtype: str | None) -> int:
    """Bytes of the weights when they are written as `dtype` (None: as they are)."""
    if dtype is None or dtype == inspection.dtype:
        return inspection.bytes
    return inspection.parameters * ITEM_SIZES[dtype]


def layers_to_remove(specification: JobSpecification, inspection: Inspection) -> int | None:
    """How many layers must go to meet the target; None if no number of them does (at least one layer stays).

    A sparsity is rounded to the nearest number of layers, so 0 means that it is closer to no layer than to
    one; for parameters, macs and bytes it is the smallest number from 1 on that meets the target.
    """
    target = specification.target
    if target.layers is not None:
        return target.layers if target.layers < inspection.layers else None
    if target.sparsity is not None:
        count = remove_count(target.sparsity, inspection.layers)
        return count if count < inspection.layers else None
    kind, amount = quantity(target.kind, target.value)
    goal = amount * figure(specification, inspection, 0, dense=True) if kind == "ratio" else amount
    for removed in range(1, inspection.layers):
        if figure(specification, inspection, removed) <= goal:
            return removed
    return None


def figure(
    specification: JobSpecification, inspection: Inspection, removed: int, *, dense: bool = False
) -> int:
    """What the target counts (parameters, macs or bytes), of the model with `removed` layers fewer; `dense`
    counts
    bytes as the model came, else as it will be written."""
    left = without_layers(inspection, removed)
    kind = specification.target.kind
    if kind == "macs":
        return count_macs(left, stated_length(specification, inspection)).total
    if kind == "bytes":
        return weight_bytes(left, None if dense else specification.output.dtype)
    return left.parameters

"""Whether a target can be met by a recipe on a model. No torch."""

from __future__ import annotations

from fractions import Fraction

from compression.anatomy.budget import figure, layers_to_remove, removed_in_all, selected_sites
from compression.anatomy.slices import expert_of
from compression.densities import least_removable, most_removable
from compression.resolving.draft import Draft
from compression.resolving.latency import check_latency
from compression.resolving.ranks import check_ranks
from compression.resolving.structures import check_structures
from compression.resolving.vocabulary import check_vocabulary
from compression.specification import block, n_m, quantity

TOLERANCE = 0.005


def check_target(draft: Draft) -> None:
    """Notes a fault if the target cannot be met. For whole layers also fills `keep_first` and `keep_last`."""
    target = draft.specification.target
    if target.kind not in draft.recipe.targets:
        slow = (
            " (dense kernels are no faster with zeros)" if target.kind == "latency" and _zeros(draft) else ""
        )
        draft.refuse(
            f"/target/{target.kind}",
            f"{draft.recipe.name} cannot aim at {target.kind}{slow}; it offers: "
            f"{', '.join(draft.recipe.targets)}.",
            "target_unsupported",
        )
    elif draft.layers and target.kind == "latency":
        check_latency(draft)
    elif draft.layers:
        _check_layers(draft)
    elif draft.structures:
        check_structures(draft)
    elif draft.vocabulary:
        check_vocabulary(draft)
    elif draft.ranks:
        check_ranks(draft)
    elif target.layers is not None:
        draft.refuse(
            "/target/layers",
            'A number of layers needs "structure": {"granularity": "layer"}.',
            "target_unsupported",
        )
    else:
        pair = n_m(draft.specification.structure.granularity)
        if pair:
            _check_n_m(draft, *pair)
        else:
            _check_weights(draft)


def _zeros(draft: Draft) -> bool:
    """Whether single weights become zeros."""
    return not (draft.layers or draft.structures or draft.vocabulary or draft.ranks)


def _check_weights(draft: Draft) -> None:
    sparsity = draft.specification.target.sparsity or 0.0
    sites = selected_sites(draft.specification, draft.inspection)
    total = sum(site.size for site in sites)
    removed = removed_in_all(draft.specification, draft.inspection)
    if removed == 0:
        draft.refuse(
            "/target/sparsity",
            f"{sparsity} of {total:,} weights rounds to none; the smallest that removes one is "
            f"{1 / total:.2g}.",
            "target_unreachable",
        )
    elif removed == total:
        draft.refuse(
            "/target/sparsity",
            f"{sparsity} of {total:,} weights rounds to all of them; the largest that leaves one is "
            f"{1 - 1 / total:.6f}.",
            "target_unreachable",
        )
    else:
        _check_bounds(draft, removed)
    _check_blocks(draft, removed)


def _check_bounds(draft: Draft, removed: int) -> None:
    options = draft.specification.options
    least, most = options.get("minimum_density", 0.0), options.get("maximum_density", 1.0)
    rows, columns = block(draft.specification.structure.granularity) or (1, 1)
    unit = rows * columns
    units = [site.size // unit for site in selected_sites(draft.specification, draft.inspection)]
    upper = sum(most_removable(size, least) for size in units)
    lower = sum(min(least_removable(size, most), most_removable(size, least)) for size in units)
    if removed // unit > upper:
        reached = upper * 10**6 // sum(units) / 10**6
        draft.refuse(
            "/target/sparsity",
            f"With options.minimum_density {least} a sparsity of at most {reached} can be "
            "reached; lower one of the two.",
            "target_unreachable",
        )
    if removed // unit < lower:
        reached = -(-lower * 10**6 // sum(units)) / 10**6
        draft.refuse(
            "/target/sparsity",
            f"With options.maximum_density {most} a sparsity of at least {reached} is reached; "
            "raise one of the two.",
            "target_unreachable",
        )


def _check_blocks(draft: Draft, removed: int) -> None:
    shape = block(draft.specification.structure.granularity)
    if shape is None:
        return
    rows, columns = shape
    odd = [
        site
        for site in selected_sites(draft.specification, draft.inspection)
        if site.shape[0] % rows or site.shape[1] % columns
    ]
    if odd:
        named = ", ".join(f"{site.name} ({site.shape[0]} x {site.shape[1]})" for site in odd[:3])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        draft.refuse(
            "/structure/granularity",
            f"Blocks of {rows}x{columns} do not fit {named}{more}: choose another size, or name them in "
            "structure.ignore.",
            "granularity_unsupported",
        )
    elif removed == 0:
        draft.refuse(
            "/target/sparsity",
            f"This sparsity removes no whole block of {rows}x{columns}.",
            "target_unreachable",
        )


def _check_n_m(draft: Draft, n: int, m: int) -> None:
    sparsity = draft.specification.target.sparsity or 0.0
    exact = 1 - n / m
    if abs(exact - sparsity) > TOLERANCE:
        draft.refuse(
            "/target/sparsity",
            f"{n}:{m} keeps {n} of every {m} weights, which is a sparsity of {round(exact, 4)}, not "
            f"{sparsity}: write "
            f'"target": {{"sparsity": {round(exact, 4)}}}{_nearest(sparsity, m)}.',
            "target_unreachable",
        )
    odd = [site for site in selected_sites(draft.specification, draft.inspection) if site.shape[1] % m]
    if odd:
        named = ", ".join(f"{site.name} ({site.shape[1]} inputs)" for site in odd[:3])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        draft.refuse(
            "/structure/granularity",
            f"Groups of {m} do not fit the inputs of {named}{more}: choose another m, or name them in "
            "structure.ignore.",
            "granularity_unsupported",
        )


def _nearest(sparsity: float, m: int) -> str:
    kept = round((1 - sparsity) * m)
    if 1 <= kept < m and abs(1 - kept / m - sparsity) <= TOLERANCE:
        return f', or the granularity "{kept}:{m}"'
    exact = Fraction(sparsity).limit_denominator(32)
    if abs(float(exact) - sparsity) <= TOLERANCE and 0 < exact < 1:
        return f', or the granularity "{exact.denominator - exact.numerator}:{exact.denominator}"'
    return ', or use the granularity "unstructured"'


def _check_layers(draft: Draft) -> None:
    specification, inspection = draft.specification, draft.inspection
    target, layers = specification.target, inspection.layers
    given = {key: value for key, value in specification.options.items() if key in draft.given_options}
    removed = layers_to_remove(specification, inspection)
    first, last = given.get("keep_first", 0), given.get("keep_last", 0)
    most = min(layers - 1, layers - first - last - _bases(draft))
    kept = f" while options keep the first {first} and the last {last}" if first or last else ""
    if _bases(draft):
        kept += ", and one stays that they are merged into"
    if removed is None or removed > most or removed < 1:
        draft.refuse(
            f"/target/{target.kind}",
            f"The model has {layers} layers, of which {_range(most)} can be removed{kept}; "
            f"{_asked(draft, removed)}. Reachable: {_reachable(draft, most)}.",
            "target_unreachable",
        )
        return
    _keep_ends(draft, removed)
    _check_merge(draft)


def _check_merge(draft: Draft) -> None:
    """Notes a fault where layers cannot be merged."""
    if _bases(draft) and any(expert_of(site.name) is not None for site in draft.inspection.sites):
        draft.refuse(
            "/options/update",
            "Experts of one layer have nothing in common with those of the same number in another, so layers "
            "with experts are not merged: write 'none'.",
            "option_conflict",
        )


def _bases(draft: Draft) -> int:
    """How many layers must stay, besides those that are kept as they are, for others to be merged into."""
    return int(draft.specification.options.get("update") == "merge")


def _range(most: int) -> str:
    return "none" if most < 1 else "one" if most == 1 else f"1 to {most}"


def _asked(draft: Draft, removed: int | None) -> str:
    value = draft.specification.target.value
    if removed is None:
        return f"a target of {value} asks for more"
    if removed == 0:
        return f"{value} of {draft.inspection.layers} rounds to none"
    return f"a target of {value} asks for {removed}"


def _reachable(draft: Draft, most: int) -> str:
    target, layers = draft.specification.target, draft.inspection.layers
    if most < 1:
        return "nothing"
    if target.kind == "layers":
        return f"1 to {most}"
    if target.kind == "sparsity":
        return f"{round(1 / layers, 4)} to {round(most / layers, 4)}"
    smallest = figure(draft.specification, draft.inspection, most)
    if quantity(target.kind, target.value)[0] == "ratio":
        dense = figure(draft.specification, draft.inspection, 0, dense=True)
        return f"ratios from {-(-smallest * 10_000 // dense) / 10_000} on"
    return f"{smallest:,} {target.kind} and more"


def _keep_ends(draft: Draft, removed: int) -> None:
    """Fills keep_first and keep_last where they were left out: one layer each as far as the target allows."""
    schema = draft.recipe.options.get("properties", {})
    options = dict(draft.specification.options)
    free = draft.inspection.layers - removed - _bases(draft)
    for key in ("keep_first", "keep_last"):
        if key in draft.given_options:
            free -= options.get(key, 0)
    for key in ("keep_first", "keep_last"):
        if key in schema and key not in draft.given_options:
            options[key] = max(0, min(1, free))
            free -= options[key]
    draft.replace(options=options)

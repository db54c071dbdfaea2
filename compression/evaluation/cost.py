"""What a model costs to store and to run, counted from its files: one definition for dense and pruned."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from compression.anatomy import Inspection, Site, count_macs
from compression.anatomy.inspection import is_buffer
from compression.anatomy.macs import used_macs
from compression.anatomy.slices import slice_of, stored_tensor
from compression.evaluation.compressibility import spread
from compression.evaluation.types import TensorSource
from compression.loading.weights import take


def cost(
    source: TensorSource,
    inspection: Inspection,
    *,
    sequence_length: int,
    weight_bytes: int,
    kept_only: bool = False,
) -> dict[str, Any]:
    """Count the model that ``source`` holds and ``inspection`` describes (the pruned model's own inspection);
    ``kept_only`` says that it is pruned.

    ``parameters``: elements of all weights, a tied head once. ``nonzeros``: those that are not zero.
    ``prunable_parameters``, ``prunable_nonzeros``: the same of the weight sites, ``sparsity`` their zeros'
    share. ``bytes``: of the weight files (``weight_bytes``). ``macs``: multiply-accumulates of all matrix
    products of one sequence of ``sequence_length`` tokens, zeros included; ``macs_nonzero``: without those
    that multiply by a pruned weight, which only a kernel that skips zeros saves. ``sites``: one entry each,
    with how compressible its values are (``compressibility``; of a pruned model that of what is left).
    """
    sites: dict[str, list[Site]] = {}
    for site in inspection.sites:
        sites.setdefault(stored_tensor(site.name), []).append(site)
    macs = count_macs(inspection, sequence_length)
    parameters = nonzeros = 0
    rows: dict[str, dict[str, Any]] = {}
    dtypes: dict[str, int] = {}
    for name in source.names():
        if not counts(name, source, inspection):
            continue
        size = prod(source.shape(name))
        tensor = source.tensor(name)
        kept = int(tensor.count_nonzero())
        parameters += size
        nonzeros += kept
        dtype = str(source.dtype(name)).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + size
        for site in sites.get(name, []):
            piece = slice_of(site.name)
            weight = tensor if piece is None else take(tensor, piece)
            rows[site.name] = site_row(site, weight, kept_only=kept_only)
    prunable = sum(site.size for site in inspection.sites)
    kept_prunable = sum(row["nonzeros"] for row in rows.values())
    saved = sum(
        used_macs(site, sequence_length, zeros(rows[site.name]))
        for site in inspection.sites
        if site.name in rows
    )
    return {
        "parameters": parameters,
        "nonzeros": nonzeros,
        "prunable_parameters": prunable,
        "prunable_nonzeros": kept_prunable,
        "sparsity": 1 - kept_prunable / prunable if prunable else 0.0,
        "bytes": weight_bytes,
        "dtype": max(dtypes, key=lambda name: dtypes[name]) if dtypes else None,
        "layers": inspection.layers,
        "macs": macs.total,
        "macs_nonzero": macs.total - saved,
        "sequence_length": sequence_length,
        "sites": [rows[site.name] for site in inspection.sites if site.name in rows],
    }


def site_row(site: Site, weight: Tensor, *, kept_only: bool) -> dict[str, Any]:
    """One entry of ``sites``, of a weight in any shape."""
    kept = int(weight.count_nonzero())
    return {
        "name": site.name,
        "layer": site.layer,
        "kind": site.kind,
        "shape": list(site.shape),
        "nonzeros": kept,
        "sparsity": 1 - kept / site.size,
        "compressibility": spread(weight, kept_only=kept_only).to_json(),
    }


def zeros(row: Mapping[str, Any]) -> int:
    """Zeros of one entry of ``sites``."""
    return int(prod(row["shape"]) - row["nonzeros"])


def counts(name: str, source: TensorSource, inspection: Inspection) -> bool:
    """Whether a stored tensor is a parameter: integers are buffers, a tied head is the embedding again, and a
    classifier may hold a pooler that its class does not have."""
    if is_buffer(name) or not source.dtype(name).is_floating_point:
        return False
    if "pooler." in name and not inspection.has_pooler:
        return False
    return name not in inspection.tied[1:]

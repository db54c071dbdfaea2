"""Prune: neurons, heads or experts, as many from every layer."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from compression.anatomy.families import family_of
from compression.anatomy.structures import GRANULARITIES, Structure, Widths
from compression.anatomy.widths import achieved, choose
from compression.block_pruning import StructureSettings
from compression.checkpoint import Store
from compression.errors import TargetUnreachable
from compression.expert_pruning import ExpertPruner
from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.loading.weights import WeightReader
from compression.pruning import Listener, finished_files
from compression.recipes.structures import structure_options
from compression.stages.job import Hook, Loaded, Pruned
from compression.structured import StructurePruner

_LIKE_THE_RECIPE = ("neuron_multiple", "head_multiple", "expert_multiple")


def prune_structures(
    loaded: Loaded,
    calibration: Sequences | Images | None,
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    """Prune by the recipe."""
    options = loaded.recipe.options.model_validate(loaded.specification.options).model_dump()
    return _pruned(loaded, options, calibration, store, listener, hook)


def baseline_structures(
    loaded: Loaded, name: str, calibration: Sequences | Images | None, store: Store, listener: Listener
) -> Pruned:
    """The same widths by the criterion of a baseline ("random", "magnitude" or another structure
    criterion)."""
    given = {key: loaded.specification.options[key] for key in _LIKE_THE_RECIPE}
    options = structure_options("Baseline", criterion=name)().model_dump() | given
    return _pruned(loaded, options, calibration, store, listener, None)


def widths_of(loaded: Loaded) -> dict[str, int]:
    """How many units of each kind stay in every layer. Raises TargetUnreachable."""
    found = choose(loaded.specification, loaded.inspection)
    if found is None:
        target = loaded.specification.target
        raise TargetUnreachable(
            f"target.{target.kind} {target.value} cannot be met by removing "
            f"{loaded.specification.structure.granularity} units of this model"
        )
    return found


def _pruned(
    loaded: Loaded,
    options: dict[str, Any],
    calibration: Sequences | Images | None,
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    widths = widths_of(loaded)
    chosen = dict(options)
    axes = {item.name: chosen.pop(item.name) for item in fields(StructureSettings) if item.name in chosen}
    axes["update"] = tuple(axes["update"])
    settings = StructureSettings(
        **axes, widths=widths, seed=loaded.specification.seed, parameters=chosen
    )  # fmt: skip
    family = family_of(loaded.admission.architecture)
    config, names = loaded.admission.config, WeightReader(loaded.folder).names()
    kinds = GRANULARITIES[loaded.specification.structure.granularity or ""]
    groups = family.groups(config, names, kinds)
    batches = calibration.batches if calibration is not None else None
    pruner: StructurePruner | ExpertPruner
    if "expert" in kinds:
        pruner = ExpertPruner(loaded.dense_model, groups, settings, batches, store, listener, hook)
    else:
        sites = {site.name: site for site in loaded.inspection.sites}
        pruner = StructurePruner(
            loaded.dense_model, groups, sites, settings, batches, store, listener, hook
        )  # fmt: skip
    facts = pruner.run()
    layers = loaded.inspection.layers
    return Pruned(
        tuple(finished_files(store, layers)),
        None,
        {},
        facts,
        None,
        config=family.resized(config, widths),
        widths=_account(loaded, widths),
        units=pruner.units(),
        gone=pruner.gone(),
    )


def _account(loaded: Loaded, widths: Widths) -> dict[str, Any]:
    """What the report says of the widths."""
    found: dict[str, Structure] = {one.kind: one for one in loaded.inspection.structures}
    return {
        "sparsity": achieved(loaded.specification, loaded.inspection, widths),
        "structures": [
            {"kind": kind, "dense": found[kind].count, "kept": kept, "parameters": found[kind].parameters}
            for kind, kept in widths.items()
        ],
    }

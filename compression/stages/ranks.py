"""Prune: weights become products of two thin ones."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from compression.anatomy.factors import bias_names
from compression.anatomy.ranks import ATOMS, MULTIPLE, Ranks, rank_budget
from compression.checkpoint import Store
from compression.errors import TargetUnreachable
from compression.export.per_layer.dictionaries import CodeMasks
from compression.export.per_layer.layout import low_rank_settings
from compression.factoring import RankPruner, RankSettings
from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.pruning import Listener, finished_files
from compression.recipes.ranks import rank_options
from compression.stages.job import Hook, Loaded, Pruned


def prune_ranks(
    loaded: Loaded,
    calibration: Sequences | Images | None,
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    """Prune by the recipe."""
    options = loaded.recipe.options.model_validate(loaded.specification.options).model_dump()
    return _pruned(loaded, options, calibration, store, listener, hook)


def baseline_ranks(
    loaded: Loaded, name: str, calibration: Sequences | Images | None, store: Store, listener: Listener
) -> Pruned:
    """The same ranks by the criterion of a baseline ("random" or "magnitude")."""
    options = rank_options("Baseline", criterion=name)().model_dump()
    options |= {name: loaded.specification.options[name] for name in (MULTIPLE, ATOMS)}
    store.save("allocation", None, loaded.store.data("allocation"))
    return _pruned(loaded, options, calibration, store, listener, None)


def _pruned(
    loaded: Loaded,
    options: dict[str, Any],
    calibration: Sequences | Images | None,
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    budget = rank_budget(loaded.specification, loaded.inspection)
    if not budget.reachable:
        target = loaded.specification.target
        raise TargetUnreachable(f"target.{target.kind} {target.value} cannot be met by lower ranks")
    chosen = dict(options)
    axes = {item.name: chosen.pop(item.name) for item in fields(RankSettings) if item.name in chosen}
    axes["update"] = tuple(name for name in axes["update"] if name != "none")
    settings = RankSettings(**axes, seed=loaded.specification.seed, parameters=chosen)
    batches = calibration.batches if calibration is not None else None
    pruner = RankPruner(loaded.dense_model, budget, settings, batches, store, listener, hook)
    facts = pruner.run()
    files, atoms = tuple(finished_files(store, loaded.inspection.layers)), settings.atoms_per_entry
    return Pruned(
        files,
        None,
        CodeMasks(files, pruner.ranks) if atoms > 1 else {},
        facts,
        None,
        config=low_rank_settings(loaded.admission.config, pruner.ranks),
        gone=frozenset(name for weight in pruner.ranks for name in (weight, bias_names(weight)[0])),
        ranks=pruner.ranks,
        atoms=atoms,
        low_rank=_account(loaded, pruner.ranks),
    )


def _account(loaded: Loaded, ranks: Ranks) -> dict[str, Any]:
    """What the report says of the ranks."""
    budget = rank_budget(loaded.specification, loaded.inspection)
    return {
        "sparsity": 1 - budget.stored(ranks) / budget.whole,
        "atoms_per_entry": budget.atoms,
        "weights": [
            {
                "name": site.name,
                "layer": site.layer,
                "shape": list(site.shape),
                "rank": ranks.get(site.name),
            }
            for site in budget.sites
        ],
    }

"""Prune: neurons, heads, experts or hidden channels, as many from every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from compression.anatomy.families import family_of
from compression.anatomy.hidden_width import HIDDEN
from compression.anatomy.structures import GRANULARITIES, Kind, Structure, Widths
from compression.anatomy.timed import target_widths
from compression.anatomy.widths import MULTIPLES, achieved, structures
from compression.block_pruning import BlockPruner, StructureSettings
from compression.checkpoint import Store
from compression.errors import TargetUnreachable
from compression.expert_pruning import ExpertPruner
from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.loading.weights import WeightReader
from compression.pruning import Batch, Listener, finished_files
from compression.recipes.structures import structure_options
from compression.stages.calibration_sets import calibration_set
from compression.stages.hidden import narrow
from compression.stages.job import Hook, Loaded, Pruned
from compression.stages.timing import reach, timing_of
from compression.stages.varied import Padding, allocate, counts_of, widths_for, write_packaged
from compression.structured import StructurePruner

_LIKE_THE_RECIPE = tuple(MULTIPLES.values())


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
    chosen = loaded.specification.options
    given = {key: chosen[key] for key in _LIKE_THE_RECIPE if key in chosen}
    options = structure_options("Baseline", criterion=name)().model_dump() | given
    if loaded.store.has("allocation"):
        # The numbers that the job found, of other units.
        store.save("allocation", None, loaded.store.data("allocation"))
        options["allocation"] = loaded.specification.options["allocation"]
    return _pruned(loaded, options, calibration, store, listener, None)


def widths_of(loaded: Loaded) -> dict[str, int]:
    """How many units of each kind stay in every layer. Raises TargetUnreachable."""
    found = target_widths(loaded.specification, loaded.inspection, timing_of(loaded))
    if found is None:
        target = loaded.specification.target
        raise TargetUnreachable(
            f"target.{target.kind} {target.value} cannot be met by removing "
            f"{loaded.specification.structure.granularity} units of this model{reach(loaded)}"
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
    settings = _settings(loaded, options)
    batches = calibration.batches if calibration is not None else None
    kinds = GRANULARITIES[loaded.specification.structure.granularity or ""]
    parts = [kind for kind in kinds if kind != HIDDEN]
    found = Pruned((), None, {}, [], None)
    if parts:
        found = _without_units(loaded, options, settings, batches, parts, store, listener, hook)
    if HIDDEN in kinds:
        found = narrow(loaded, found, settings, batches, store, listener, hook)
    return found if found.widths is not None else replace(found, widths=_account(loaded, settings.widths))


def _settings(loaded: Loaded, options: Mapping[str, Any]) -> StructureSettings:
    chosen = dict(options)
    axes = {item.name: chosen.pop(item.name) for item in fields(StructureSettings) if item.name in chosen}
    axes["update"] = tuple(axes["update"])
    widths = _whole(loaded) if options["allocation"] != "uniform" else widths_of(loaded)
    return StructureSettings(**axes, widths=widths, seed=loaded.specification.seed, parameters=chosen)


def _without_units(
    loaded: Loaded,
    options: dict[str, Any],
    settings: StructureSettings,
    batches: Sequence[Batch] | None,
    kinds: Sequence[Kind],
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    """The model without neurons, heads or experts."""
    family = family_of(loaded.admission.architecture)
    config, reader = loaded.admission.config, WeightReader(loaded.folder)
    groups = family.groups(config, reader.names(), kinds)
    if "expert" in kinds:
        pruner: BlockPruner[Any] = ExpertPruner(
            loaded.dense_model, groups, settings, batches, store, listener, hook
        )
    else:

        def build(batches: Sequence[Batch] | None, store: Store) -> StructurePruner:
            sites = {site.name: site for site in loaded.inspection.sites}
            found = StructurePruner(
                loaded.dense_model, groups, sites, settings, batches, store, listener, hook
            )
            if varied:
                allocate(loaded, found, options)
            return found

        varied = options["allocation"] != "uniform"
        pruner = cutter = build(calibration_set(loaded, batches, options, store, build), store)
        if varied:
            return _varied(loaded, cutter, reader)
    facts = pruner.run()
    return Pruned(
        tuple(finished_files(store, loaded.inspection.layers)),
        None,
        {},
        facts,
        None,
        config=family.resized(config, {kind: settings.widths[kind] for kind in kinds}),
        units=pruner.units(),
        gone=pruner.gone(),
    )


def _varied(loaded: Loaded, pruner: StructurePruner, reader: WeightReader) -> Pruned:
    """The same with numbers of each layer's own, all brought to one width by zeros."""
    facts = pruner.run()
    widths, counts = widths_for(loaded, pruner), counts_of(pruner)
    padding = Padding(pruner, reader, widths)
    found = Pruned(
        tuple(padding.files(loaded.inspection.layers)),
        None,
        padding.masks(),
        facts,
        None,
        config=family_of(loaded.admission.architecture).resized(loaded.admission.config, widths),
        widths=_varied_account(loaded, widths, counts),
        units=pruner.units(),
        counts=counts,
    )
    if loaded.specification.output.layout != "packaged":
        return found
    folder = pruner.store.root / "packaged"
    return replace(found, written=write_packaged(loaded, found.source(loaded), found, folder))


def _whole(loaded: Loaded) -> dict[str, int]:
    return {one.kind: one.count for one in structures(loaded.specification, loaded.inspection)}


def _varied_account(loaded: Loaded, widths: Widths, counts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    found: dict[str, Structure] = {one.kind: one for one in loaded.inspection.structures}
    whole = loaded.inspection.layers * sum(found[kind].count * found[kind].parameters for kind in widths)
    kept = sum(sum(numbers) * found[kind].parameters for kind, numbers in counts.items())
    return {
        "layout": loaded.specification.output.layout,
        "sparsity": 1 - kept / whole,
        "structures": [
            {
                "kind": kind,
                "dense": found[kind].count,
                "kept": width,
                "parameters": found[kind].parameters,
                "layers": list(counts[kind]),
            }
            for kind, width in widths.items()
        ],
    }


def _account(loaded: Loaded, widths: Widths) -> dict[str, Any]:
    """What the report says of the widths."""
    found: dict[str, Structure] = {one.kind: one for one in loaded.inspection.structures}
    return {
        "layout": loaded.specification.output.layout,
        "sparsity": achieved(loaded.specification, loaded.inspection, widths),
        "structures": [
            {
                "kind": kind,
                "dense": found[kind].count,
                "kept": kept,
                "parameters": found[kind].parameters,
                "layers": None,
            }
            for kind, kept in widths.items()
        ],
    }

"""Prune: single weights, ranks, neurons, heads, experts or whole layers, by the recipe's criterion or by that
of a baseline."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from compression.anatomy.budget import removed_in_all, selected_sites
from compression.anatomy.structures import GRANULARITIES as STRUCTURES
from compression.anatomy.timed import target_layers
from compression.anatomy.varied import RANK
from compression.anatomy.vocabulary import VOCABULARY
from compression.checkpoint import Store
from compression.criteria.layers import layer_criteria
from compression.cutting import PruneSettings
from compression.depth import DepthEvidence, DepthTask, LayerChoice, baseline_layers, choose_layers
from compression.errors import TargetUnreachable
from compression.evaluation.quality import evaluate
from compression.evaluation.types import FEATURES, Evaluable
from compression.evidence import Curves, curve_key
from compression.granularity.base import Pattern, parse_granularity
from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.loading.streamed import StreamedModel
from compression.merging import merged_tensors
from compression.pruning import Listener, MaskFiles, WeightPruner, finished_files
from compression.recipes import recipes
from compression.recipes.layers import LayerOptions
from compression.stages.job import Data, Loaded, Pruned, Watched
from compression.stages.ranks import baseline_ranks, prune_ranks
from compression.stages.retold import KeptVocabulary, by_text, read_again
from compression.stages.structures import baseline_structures, prune_structures
from compression.stages.timing import reach, timing_of
from compression.stages.vocabulary import prune_vocabulary
from compression.updates.layers import layer_updates


def pattern_of(loaded: Loaded) -> Pattern:
    """The granularity of the job, parsed; the recipe's first one when the specification leaves it open."""
    return parse_granularity(loaded.specification.structure.granularity or loaded.recipe.granularities[0])


def prune(loaded: Loaded, data: Data, entered: Callable[[], None] = lambda: None) -> Pruned:
    """Prune by the recipe. `entered` is called once calibration is over and removing begins."""
    calibration = data.calibration
    if pattern_of(loaded).kind == "layer":
        choice = _choose(loaded, calibration)
        entered()
        return Pruned(merged_files(loaded, choice), choice.kept, {}, [], choice.to_json())
    if pattern_of(loaded).kind in STRUCTURES:
        entered()
        return prune_structures(loaded, calibration, loaded.store, loaded.observer, loaded.hook)
    if pattern_of(loaded).kind == VOCABULARY:
        entered()
        return prune_vocabulary(loaded, data, loaded.store)
    if pattern_of(loaded).kind == RANK:
        entered()
        return prune_ranks(loaded, calibration, loaded.store, loaded.observer, loaded.hook)
    settings = weight_settings(
        loaded, loaded.recipe.options.model_validate(loaded.specification.options).model_dump()
    )
    pruner = WeightPruner(
        loaded.dense_model,
        selected_sites(loaded.specification, loaded.inspection),
        settings,
        calibration.batches if calibration is not None else None,
        loaded.store,
        loaded.observer,
        loaded.hook,
        _curves(loaded, settings, data),
        data.domain.batches if data.domain is not None else None,
    )
    pruner.allocate()
    entered()
    return _removed(loaded, pruner, loaded.store)


def _curves(loaded: Loaded, settings: PruneSettings, data: Data) -> Curves:
    """Where divergences are kept: for later jobs with the same model, data and way of pruning, if there is
    a cache."""
    if data.calibration is None:
        return Curves(None, "")
    model = hashlib.sha256(json.dumps(dict(loaded.files), sort_keys=True).encode()).hexdigest()
    sites = sorted(site.name for site in selected_sites(loaded.specification, loaded.inspection))
    texts = " ".join(used.digest for used in (data.calibration, data.domain) if used is not None)
    key = curve_key(settings, f"{model} {sites}", texts)
    return Curves(loaded.request.cache, key)


def _removed(loaded: Loaded, pruner: WeightPruner, store: Store) -> Pruned:
    facts = pruner.run()
    layers = loaded.inspection.layers
    return Pruned(tuple(finished_files(store, layers)), None, MaskFiles(store, pruner.sites), facts, None)


def weight_settings(loaded: Loaded, options: dict[str, Any]) -> PruneSettings:
    """The axes that options of single weights choose; the target counts over all prunable weights that are
    not ignored.
    """
    spec = loaded.specification
    if spec.target.sparsity is None:
        raise TargetUnreachable(f"recipe {spec.recipe!r} needs target.sparsity")
    chosen = dict(options)
    axes = {item.name: chosen.pop(item.name) for item in fields(PruneSettings) if item.name in chosen}
    axes["update"] = tuple(axes["update"])
    return PruneSettings(
        **axes,
        pattern=pattern_of(loaded),
        remove_total=removed_in_all(spec, loaded.inspection),
        seed=spec.seed,
        parameters=chosen,
    )


def _choose(loaded: Loaded, calibration: Sequences | Images | None) -> LayerChoice:
    """The layers to drop, kept as step `layers`; the rounds of a greedy choice as step `layer-rounds`."""
    store = loaded.store
    if not store.has("layers"):
        assert calibration is not None
        options = _layer_options(loaded)
        known = store.data("layer-rounds")["rounds"] if store.has("layer-rounds") else []
        task = DepthTask(
            loaded.inspection.layers,
            _layers_to_remove(loaded),
            options.keep_first + layer_updates[options.update].bases,
            options.keep_last,
            options.collapse_layers,
            [(list(layers), float(cost)) for layers, cost in known],
            lambda rounds: store.save("layer-rounds", None, {"rounds": rounds}),
        )
        evidence = DepthEvidence(
            loaded.dense_model(),
            calibration.batches,
            options.layer_sequences,
            loaded.observer,
            loaded.hook,
            layer_updates[options.update],
        )
        criterion = layer_criteria[options.criterion]
        choice = choose_layers(task, criterion, options.selection, evidence, loaded.observer)
        store.save("layers", None, choice.to_json())
    return LayerChoice.from_json(store.data("layers"))


def merged_files(loaded: Loaded, choice: LayerChoice) -> tuple[Path, ...]:
    """The layers that others were merged into, each kept as a step `merged-0000`..., to be laid over the
    dense files."""
    store, model = loaded.store, loaded.dense_model()
    names = {layer: f"merged-{layer:04d}" for layer in choice.merged}
    for layer, name in names.items():
        if not store.has(name):
            store.save(name, merged_tensors(model, layer, choice.merged[layer]), {})
    return tuple(store.path(name) for name in names.values())


def _layer_options(loaded: Loaded) -> LayerOptions:
    chosen = loaded.recipe.options.model_validate(loaded.specification.options)
    assert isinstance(chosen, LayerOptions)
    return chosen


def _layers_to_remove(loaded: Loaded) -> int:
    count = target_layers(loaded.specification, loaded.inspection, timing_of(loaded))
    options = loaded.specification.options
    most = loaded.inspection.layers - max(1, options.get("keep_first", 0) + options.get("keep_last", 0))
    if not count or count > most:
        target = loaded.specification.target
        raise TargetUnreachable(
            f"target.{target.kind} {target.value} cannot be met by dropping layers: at least 1 and at most "
            f"{most} can go, of {loaded.inspection.layers}{reach(loaded)}"
        )
    return count


def compare(loaded: Loaded, data: Data, name: str) -> dict[str, Any]:
    """Quality of the same target by another criterion, on general text ("quality") and on that of a domain
    ("domain"), kept as step `compared-NAME`; its weights are thrown away.
    """
    step = f"compared-{name}"
    if not loaded.store.has(step):
        scratch = loaded.work / "scratch" / name
        shutil.rmtree(scratch, ignore_errors=True)
        pruned = _by_criterion(loaded, name, Store(scratch, loaded.store.key), data)
        own = read_again(loaded, data, pruned)
        # What a baseline is judged by needs no second look at the dense model, but for headless encoders.
        reference = loaded.admission.task == FEATURES
        judged = {
            "quality": judge(loaded, own.evaluation, pruned, data.evaluation, reference=reference),
            "domain": judge(
                loaded, own.domain_evaluation, pruned, data.domain_evaluation, reference=reference
            ),
        }
        loaded.store.save(step, None, judged)
        shutil.rmtree(scratch, ignore_errors=True)
    return dict(loaded.store.data(step))


def _by_criterion(loaded: Loaded, name: str, store: Store, data: Data) -> Pruned:
    calibration = data.calibration
    if pattern_of(loaded).kind == "layer":
        options = _layer_options(loaded)
        kept = baseline_layers(
            name,
            loaded.dense_model(),
            loaded.inspection.sites,
            _layers_to_remove(loaded),
            (options.keep_first, options.keep_last),
            loaded.specification.seed,
        )
        return Pruned((), kept, {}, [], None)
    if pattern_of(loaded).kind in STRUCTURES:
        return baseline_structures(loaded, name, calibration, store, _Quiet(loaded.observer))
    if pattern_of(loaded).kind == VOCABULARY:
        return prune_vocabulary(loaded, data, store, name)
    if pattern_of(loaded).kind == RANK:
        return baseline_ranks(loaded, name, calibration, store, _Quiet(loaded.observer))
    # A baseline has the job's granularity and bounds, and its own habits for the rest.
    bounds = ("minimum_density", "maximum_density")
    given = {key: value for key, value in loaded.specification.options.items() if key in bounds}
    settings = weight_settings(loaded, recipes[name].options().model_dump() | given)
    batches = calibration.batches if calibration is not None and settings.needs else None
    pruner = WeightPruner(
        loaded.dense_model,
        selected_sites(loaded.specification, loaded.inspection),
        settings,
        batches,
        store,
        _Quiet(loaded.observer),
    )
    return _removed(loaded, pruner, store)


class _Quiet:
    """Passes progress on, so that a baseline looks like any other work."""

    def __init__(self, listener: Listener) -> None:
        self.progress = listener.progress
        self.log = listener.log


def judge(
    loaded: Loaded,
    batches: Sequences | Images | None,
    pruned: Pruned,
    dense_batches: Sequences | Images | None = None,
    *,
    reference: bool = True,
) -> dict[str, Any] | None:
    """Quality of a pruned model on evaluation batches (None: there are none); with `reference` also how far
    it is from the dense one, which read the same texts as `dense_batches` (None: as the same batches).
    """
    if batches is None:
        return None
    return judged(loaded, batches, pruned.model(loaded), pruned, dense_batches, reference=reference)


def judged(
    loaded: Loaded,
    batches: Sequences | Images,
    model: StreamedModel,
    pruned: Pruned,
    dense_batches: Sequences | Images | None,
    *,
    reference: bool = True,
) -> dict[str, Any]:
    """Quality of a model that came of pruning; see `judge`."""
    metrics = loaded.specification.evaluation.metrics or []
    watched = Watched(model, loaded.observer.progress)
    dense: Evaluable | None = loaded.dense_model() if reference else None
    apart = None
    if pruned.rows is not None and reference:
        if by_text(loaded):
            apart = None if dense_batches is None else dense_batches.batches
        else:
            dense = KeptVocabulary(loaded.dense_model(), pruned.rows, loaded.admission.task)
    return evaluate(
        watched,
        batches,
        metrics,
        reference=dense,
        reference_batches=apart,
        text_bytes=getattr(batches, "text_bytes", None),
    )

"""Prune: channels of the residual stream, after neurons and heads have gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compression.anatomy.families import family_of
from compression.anatomy.hidden_width import HIDDEN, PER_LAYER, ROTATION
from compression.block_pruning import StructureSettings
from compression.channel_pruning import ChannelPruner
from compression.checkpoint import Hook, Store
from compression.export.per_layer.layout import skip_settings
from compression.layer_rotations import RotationPruner
from compression.loading.weights import WeightReader
from compression.pruning import Batch, Listener
from compression.stages.job import Loaded, Pruned


def narrow(
    loaded: Loaded,
    before: Pruned,
    settings: StructureSettings,
    batches: Sequence[Batch] | None,
    store: Store,
    listener: Listener,
    hook: Hook | None,
) -> Pruned:
    """The pruned model with fewer hidden channels, by the criterion of the settings on the dense model.
    `before` has lost the other units that the job removes. If all channels stay, nothing is done."""
    if settings.widths[HIDDEN] == loaded.inspection.hidden:
        return before
    family, config = family_of(loaded.admission.architecture), loaded.admission.config
    rotation = settings.parameters.get(ROTATION, "none")
    rotated, skips = rotation != "none", rotation == PER_LAYER
    stream = family.stream(config, WeightReader(loaded.folder).names())
    pruner = (RotationPruner if skips else ChannelPruner)(
        loaded.dense_model,
        stream,
        before.source(loaded),
        settings,
        batches,
        store,
        listener,
        hook,
        rotated=rotated,
    )
    facts = pruner.run(loaded.inspection.sites if not before.overlay else ())
    resized = family.resized(config, settings.widths)
    if rotated:
        resized["tie_word_embeddings"] = False
    kept = pruner.kept()
    return replace(
        before,
        overlay=(*before.overlay, *pruner.files()),
        sites=[*before.sites, *facts],
        config=skip_settings(resized) if skips else resized,
        skips=skips,
        units={**before.units, **({} if kept is None else {HIDDEN: [kept]})},
    )

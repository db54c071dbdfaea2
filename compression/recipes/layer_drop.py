"""Dropping a run of layers."""

from __future__ import annotations

from compression.anatomy.families import DECODERS, ENCODERS
from compression.recipes import recipes
from compression.recipes.base import LayerOptions, Paper, Recipe

LAYER_DROP = recipes.register(
    Recipe(
        name="layer-drop",
        title="Layer dropping",
        summary="Removes the run of layers that turns the hidden states least. Faster everywhere.",
        paper=Paper(
            "The Unreasonable Ineffectiveness of the Deeper Layers",
            "Gromov, Tirumala, Shapourian, Glorioso, Roberts",
            "ICLR 2025",
            "2403.17887",
        ),
        needs=frozenset({"calibration"}),
        families=(*DECODERS, *ENCODERS),
        granularities=("layer",),
        targets=("sparsity", "parameters", "macs", "bytes", "layers"),
        options=LayerOptions,
        axes={"criterion": "angular", "update": "none", "schedule": "one-shot"},
    )
)

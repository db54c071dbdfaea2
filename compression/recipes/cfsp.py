"""CFSP: neurons alone, coarse to fine.

Its recovery gives important layers more training; that is left to the recovery chosen with the job.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

CFSP = recipes.register(
    structure_recipe(
        "cfsp",
        "CFSP",
        "Layers that turn the hidden states more keep more neurons; in each, those with most relative weight "
        "and activation. One pass. Needs output.layout.",
        Paper(
            "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation "
            "Information",
            "Wang, Ma, Wang, Chen, and others",
            "COLING 2025",
            "2409.13199",
        ),
        granularities=("neuron",),
        criterion="cfsp",
        allocation="influence",
    )
)

"""Neurons, heads, experts and hidden channels: the same number goes from every layer, and the rest is an
ordinary smaller checkpoint."""

from __future__ import annotations

from compression.granularity import granularities


@granularities.register
class Neuron:
    """Rows of what comes up into the feed-forward, with the columns that lead down."""

    name = "neuron"
    summary = "Neurons of the feed-forward. Smaller and faster everywhere; no special runtime."
    pattern = "^neuron$"


@granularities.register
class Head:
    """Key-value heads with the query heads that read them; query heads, where one key-value head serves
    all."""

    name = "head"
    summary = "Attention heads with their key-value head. Smaller and faster everywhere; no special runtime."
    pattern = "^head$"


@granularities.register
class NeuronHead:
    """Both, by about the same share."""

    name = "neuron+head"
    summary = "Neurons and heads by about the same share. Smaller and faster everywhere."
    pattern = r"^neuron\+head$"


@granularities.register
class Expert:
    """Whole experts of a mixture, with the router rows that send tokens to them."""

    name = "expert"
    summary = "Whole experts of a mixture. Smaller everywhere; a token takes as many as before."
    pattern = "^expert$"


@granularities.register
class Hidden:
    """Channels of the residual stream, with their place in embeddings, norms, weights and head."""

    name = "hidden"
    summary = "Channels of the residual stream, the same in all layers and in embeddings. Smaller and faster."
    pattern = "^hidden$"


@granularities.register
class NeuronHidden:
    """Neurons and channels of the residual stream, by about the same share."""

    name = "neuron+hidden"
    summary = "Neurons and hidden channels by about the same share. Smaller and faster everywhere."
    pattern = r"^neuron\+hidden$"


@granularities.register
class NeuronHeadHidden:
    """All three, by about the same share."""

    name = "neuron+head+hidden"
    summary = "Neurons, heads and hidden channels by about the same share. Smaller and faster everywhere."
    pattern = r"^neuron\+head\+hidden$"

"""Gradients of single weights over the calibration data, one block in memory at a time.

Forward, the hidden states before every block are kept; backward, blocks are loaded from the last to the
first, each recomputes its output and hands the gradient of its input on. The result is that of
back-propagation through the whole model. Where even that is too much, `zeroth_order` needs forward passes
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from compression.anatomy.inspection import Site
from compression.checkpoint import Store
from compression.criteria.base import SiteStatistics
from compression.errors import CompressionError
from compression.evaluation.types import IGNORED, rows, targets
from compression.loading.hidden import HiddenStates
from compression.loading.streamed import Block, States, StreamedModel
from compression.seeds import site_generator

Batch = dict[str, Tensor]
KINDS = ("mean", "absolute", "square")
MASK = "mask"
Units = Mapping[str, int]
"""By the name of a weight whose inputs are units: how many."""
Objective = Callable[[Tensor, Batch], Tensor]
"""What is differentiated: a number from what the model predicts of one sequence, and that sequence."""


class NoLoss(CompressionError):
    """A method needs the gradient of a loss, and the model has no head that gives one."""

    code = "loss_missing"


def sequence_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Loss of a batch of one sequence: mean next-token cross entropy of real tokens, or that of the class.

    logits: [1, s, vocabulary] or [1, classes]; of an encoder with a decoder that of its targets. A
    classifier's batch without labels is judged by the class
    that the model itself gives; a sequence of one token, which predicts nothing, has loss 0.
    """
    logits = logits.to(torch.float32)
    if logits.dim() == 2:
        labels = batch.get("labels")
        target = logits.detach().argmax(-1) if labels is None else labels.to(logits.device).reshape(-1)
        return functional.cross_entropy(logits, target)
    target = targets(batch).to(logits.device)
    if not bool((target != IGNORED).any()):
        return logits.sum() * 0.0
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


def sequence_height(logits: Tensor, batch: Batch) -> Tensor:
    """How high what is predicted of a batch of one sequence gets: the mean over all outputs (the vocabulary,
    or the classes) of the highest logit at any place. logits: [1, s, vocabulary] or [1, classes]."""
    return logits.to(torch.float32).reshape(-1, logits.shape[-1]).amax(0).mean()


def single_sequences(batches: Sequence[Batch], limit: int) -> list[Batch]:
    """The first `limit` sequences of some batches, one a batch, without their padding at the end."""
    found: list[Batch] = []
    for batch in batches:
        for row in range(rows(batch)):
            if len(found) == limit:
                return found
            found.append(_without_padding({name: value[row : row + 1] for name, value in batch.items()}))
    return found


def _without_padding(one: Batch) -> Batch:
    """The sequence (and, for a decoder, its target) without the padding at its end."""
    target = {
        name: value
        for name, value in one.items()
        if "decoder_input_ids" in one and (name.startswith("decoder_") or name == "labels")
    }
    source = {name: value for name, value in one.items() if name not in target}
    return {**_cut(source, "attention_mask"), **_cut(target, "decoder_attention_mask")}


def _cut(one: Batch, name: str) -> Batch:
    mask = one.get(name)
    if mask is None:
        return one
    real, width = mask[0].nonzero(), mask.shape[1]
    end = int(real[-1]) + 1 if len(real) else 1
    cut = {
        other: value[:, :end] if value.dim() == 2 and value.shape[1] == width else value
        for other, value in one.items()
    }
    if bool(cut[name].all()):
        del cut[name]
    return cut


@dataclass
class GradientFiles:
    """The gradient statistics of the sites, read from the steps `gradients-0000`... when they are asked for.

    `use` comes before the names of the steps, so that several datasets have theirs side by side.
    """

    store: Store
    kinds: tuple[str, ...]
    use: str = ""

    def of(self, site: Site) -> dict[str, Tensor]:
        """By kind: float32 [out, in] (logical)."""
        if not self.kinds:
            return {}
        return {kind: self._read(site, kind) for kind in self.kinds}

    def masks(self, site: Site) -> Tensor:
        """Float32 [units]: the mean over sequences of the squared derivative of the loss by a factor 1 that
        all inputs of a unit are multiplied with."""
        return self._read(site, MASK)

    def _read(self, site: Site, kind: str) -> Tensor:
        with safe_open(
            self.store.path(step_name(site.layer, self.use)), framework="pt", device="cpu"
        ) as stream:
            found: Tensor = stream.get_tensor(f"{site.name}.{kind}")
            return found


@dataclass
class Measured:
    """The gradients of a job: on the (general) calibration data, and on the data of the domain."""

    general: GradientFiles
    domain: GradientFiles

    def added(self, statistics: SiteStatistics, site: Site) -> SiteStatistics:
        """The statistics of a site with its gradients."""
        return statistics.with_gradients(self.general.of(site), self.domain.of(site))


def step_name(layer: int, use: str = "") -> str:
    """Name of the step with the gradients of a layer."""
    return f"{use}gradients-{layer:04d}"


def exact(
    open_model: Callable[[], StreamedModel],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    store: Store,
    kinds: tuple[str, ...],
    progress: Callable[[int, int], None],
    use: str = "",
    units: Units | None = None,
    objective: Objective = sequence_loss,
) -> GradientFiles:
    """Mean of g, |g| and g^2 over sequences, g being the gradient of the objective, for the kinds that are
    asked for, and what `masks` gives for the weights of `units`; one step a layer.

    Batches hold one sequence each (`single_sequences`); `use` is that of `GradientFiles`. Raises NoLoss for a
    model without a head.
    """
    model = open_model()
    _check_head(model)
    done = [store.has(step_name(index, use)) for index in range(model.layers)]
    if not all(done):
        states = model.start(batches)
        inputs: list[HiddenStates] = []
        ends: dict[int, HiddenStates] = {}
        for index in range(model.layers):
            if model.begins(index) is not None:
                ends[index] = states.hidden.snapshot()
            model.advance(states, index)
            inputs.append(states.hidden.snapshot())
            model.run_block(model.load_block(index), states)
        slopes = Slopes([_head_slope(model, states, number, objective) for number in range(len(states))])
        for index in reversed(range(model.layers)):
            block = model.load_block(index)
            names = [site for site in sites if site.layer == index]
            sums = Sums(names, kinds, units or {})
            _block_backward(block, sums, states, inputs.pop(), slopes)
            tensors = sums.means(len(batches))
            store.save(step_name(index, use), tensors, {"sequences": len(batches)})
            if index in ends:
                _cross_back(model, states, index, ends.pop(index), slopes)
            progress(model.layers - index, model.layers)
    return GradientFiles(store, kinds, use)


class Slopes(list[Tensor]):
    """For each sequence, the gradient of the loss with respect to hidden states [1, s, hidden]; `memory` that
    with respect to the encoder's output, summed over the decoder's blocks that were passed so far."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__(values)
        self.memory: list[Tensor | None] = [None] * len(values)

    def add(self, number: int, slope: Tensor) -> None:
        """Add what another block of the decoder makes of the encoder's output."""
        known = self.memory[number]
        self.memory[number] = slope if known is None else known + slope


def _cross_back(model: StreamedModel, states: States, index: int, ends: HiddenStates, slopes: Slopes) -> None:
    """Turn slopes of what the list of blocks that `index` begins was given into those of what the list before
    ended with (`ends`)."""
    number = model.begins(index)
    assert number is not None
    for place, given in enumerate(ends):
        hidden = given.detach().requires_grad_()
        with torch.enable_grad():
            entered = model.crossing(states, place, number, hidden)
            pairs = [
                (value, slope)
                for value, slope in zip(entered, (slopes[place], slopes.memory[place]), strict=False)
                if value.requires_grad and slope is not None
            ]
            # A decoder begins with embeddings of its own, which nothing of the encoder reaches.
            (slope,) = torch.autograd.grad([value for value, _ in pairs], hidden, [grad for _, grad in pairs])
        slopes[place], slopes.memory[place] = slope, None


def _check_head(model: StreamedModel) -> None:
    if not model.predicts:
        raise NoLoss(
            "this model gives hidden states and no predictions, so there is no loss to differentiate"
        )


def _head_slope(model: StreamedModel, states: States, number: int, objective: Objective) -> Tensor:
    """Gradient of the objective with respect to the last hidden state of one sequence."""
    hidden = states.hidden[number].detach().requires_grad_()
    with torch.enable_grad():
        logits = model.head(states, number, hidden)
        (slope,) = torch.autograd.grad(objective(logits, states.batches[number]), hidden)
    return slope


class Sums:
    """Statistics of the gradients of sites, added up sequence by sequence."""

    def __init__(self, sites: Sequence[Site], kinds: tuple[str, ...], units: Units) -> None:
        self.sites = list(sites)
        self._kinds = {site.name: {kind: torch.zeros(site.shape) for kind in kinds} for site in sites}
        self._masks = {site.name: torch.zeros(units[site.name]) for site in sites if site.name in units}

    def add(self, site: Site, gradient: Tensor, weight: Tensor) -> None:
        """Add the gradient float32 [out, in] of one sequence; `weight` [out, in] is what it belongs to."""
        for kind, total in self._kinds[site.name].items():
            total += _TERMS[kind](gradient)
        if site.name in self._masks:
            total = self._masks[site.name]
            slopes = (weight.to("cpu", torch.float32) * gradient).sum(0).reshape(len(total), -1).sum(1)
            total += slopes.square()

    def means(self, count: int) -> dict[str, Tensor]:
        """The means over `count` sequences, by site and kind."""
        found = {f"{name}.{MASK}": total / max(1, count) for name, total in self._masks.items()}
        for name, totals in self._kinds.items():
            found |= {f"{name}.{kind}": total / max(1, count) for kind, total in totals.items()}
        return found


_TERMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda gradient: gradient,
    "absolute": torch.abs,
    "square": torch.square,
}


def _block_backward(
    block: Block, sums: Sums, states: States, inputs: Sequence[Tensor], slopes: Slopes
) -> None:
    """Adds the gradients of a block's sites; `slopes` become those of the block's inputs."""
    parameters = [block.parameter(site.name).requires_grad_() for site in sums.sites]
    for number, given in enumerate(inputs):
        hidden = given.detach().requires_grad_()
        memory = states.lend(number, block.index)
        args, kwargs = states.call(number, block.index, *memory)
        with torch.enable_grad():
            output = block.module(hidden, *args, **kwargs)
            output = output[0] if isinstance(output, tuple) else output
            slope, *found = torch.autograd.grad(output, [hidden, *memory, *parameters], slopes[number])
        slopes[number] = slope
        if memory:
            slopes.add(number, found.pop(0))
        for site, gradient, weight in zip(sums.sites, found, parameters, strict=True):
            gradient = logical(gradient, site).to("cpu", torch.float32)
            sums.add(site, gradient, logical(weight.detach(), site))


def logical(stored: Tensor, site: Site) -> Tensor:
    """A stored weight as [out, in]: some families store the transpose. A view."""
    return stored.T if site.transposed else stored


def total_loss(
    model: StreamedModel,
    batches: Sequence[Batch],
    change: Callable[[Block], None],
    objective: Objective = sequence_loss,
) -> float:
    """Mean loss (or other objective) over sequences; `change` may alter each block once it is loaded."""
    states = model.start(batches)
    for index in range(model.layers):
        model.advance(states, index)
        block = model.load_block(index)
        change(block)
        model.run_block(block, states)
    losses = [
        float(objective(output, batch)) for output, batch in zip(model.finish(states), batches, strict=True)
    ]
    return sum(losses) / max(1, len(losses))


def zeroth_order(
    open_model: Callable[[], StreamedModel],
    sites: Sequence[Site],
    batches: Sequence[Batch],
    store: Store,
    kinds: tuple[str, ...],
    directions: int,
    seed: int,
    progress: Callable[[int, int], None],
    use: str = "",
    units: Units | None = None,
    objective: Objective = sequence_loss,
) -> GradientFiles:
    """The same from forward passes alone: an average of slopes along random directions (Spall 1992, SPSA).

    Direction k moves every site by h * rms(W) * z, z standard normal, h of `difference_step`; the estimate of
    the mean gradient is the average of slope_k * z_k / (h * rms(W)), and |g| and g^2 are those of the
    estimate. Only the slopes are kept; directions come again from their seeds. With n directions, the share
    of noise in an estimate falls as 1 / sqrt(n), so this ranks layers well and single weights poorly.
    """
    model = open_model()
    _check_head(model)
    step = difference_step(model.dtype)
    for number in range(directions):
        name = f"{use}slope-{number:04d}"
        if not store.has(name):
            up, down = (
                total_loss(model, batches, _moved(sites, seed, number, sign * step), objective)
                for sign in (1.0, -1.0)
            )
            store.save(name, None, {"slope": (up - down) / 2})
        progress(number + 1, directions)
    slopes = [float(store.data(f"{use}slope-{number:04d}")["slope"]) for number in range(directions)]
    for index in range(model.layers):
        if not store.has(step_name(index, use)):
            sums = Sums([site for site in sites if site.layer == index], kinds, units or {})
            for site in sums.sites:
                weight = logical(model.reader.tensor(site.name), site)
                sums.add(site, _estimate(model, site, seed, slopes), weight)
            facts = {"sequences": len(batches), "directions": directions}
            store.save(step_name(index, use), sums.means(1), facts)
    return GradientFiles(store, kinds, use)


def difference_step(dtype: torch.dtype) -> float:
    """Step of differences of the loss, relative to the root mean square of a weight, for weights of a dtype.

    With 16 bits, a smaller step would mostly be rounded away.
    """
    return 3e-3 if dtype == torch.float32 else 3e-2


def _direction(site: Site, seed: int, number: int) -> Tensor:
    return torch.randn(site.shape, generator=site_generator(seed, f"direction {number} {site.name}"))


def _scale(weight: Tensor) -> float:
    return float(weight.to(torch.float32).square().mean().sqrt()) or 1.0


def _moved(sites: Sequence[Site], seed: int, number: int, step: float) -> Callable[[Block], None]:
    def change(block: Block) -> None:
        for site in (site for site in sites if site.layer == block.source):
            parameter = block.parameter(site.name).data
            move = _direction(site, seed, number).mul_(step * _scale(parameter))
            logical(parameter, site).add_(move.to(parameter.device, parameter.dtype))

    return change


def _estimate(model: StreamedModel, site: Site, seed: int, slopes: Sequence[float]) -> Tensor:
    total = torch.zeros(site.shape)
    for number, slope in enumerate(slopes):
        total += slope * _direction(site, seed, number)
    step = difference_step(model.dtype) * _scale(model.reader.tensor(site.name))
    return total / (len(slopes) * step)

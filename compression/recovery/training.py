"""The training loop that every recovery shares: deterministic, guarded against overfitting, resumable.

A step depends on the seed, the step number and the state before it only, so a run that was interrupted and
resumed from a saved step ends with the same bits as one that was not. Dropout stays off.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from compression.errors import RecoveryDiverged
from compression.evaluation.types import Batch
from compression.recovery.optimisers import STATES, adamw, sgd
from compression.recovery.types import Observer, Store, TrainingData

Loss = Callable[[Batch], Tensor]
"""A batch -> the mean loss of its positions, a scalar that gradients flow from."""


class Trained(Protocol):
    """What is trained: float32 leaf tensors, and how they reach the model. `buffers` are what a forward pass
    changes by itself (running statistics), by names that no master has; they are part of the state."""

    @property
    def masters(self) -> Mapping[str, Tensor]: ...

    @property
    def buffers(self) -> Mapping[str, Tensor]: ...

    def train(self, on: bool) -> None:
        """Whether the model learns (its forward passes may change the buffers) or is only looked at."""

    def gather(self) -> None:
        """Bring this step's gradients onto the masters (``.grad``, float32, masked)."""

    def publish(self) -> None:
        """Make the model compute with the present masters."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors to write, by their name in the model's files."""


class Hook:
    """What a schedule adds to every step. A subclass overrides what it needs; what it remembers from step to
    step is its `state`, which is saved and comes back with the rest."""

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        """May add to ``.grad`` of the masters (None where the loss does not reach one), after the gradients
        of the loss were clipped; ``step`` counts from 0."""

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        """May change the masters after the optimiser's update, before the model computes with them;
        ``.grad`` is still that of the step."""

    def state(self) -> Mapping[str, Tensor]:
        """What the next step depends on besides masters and step number, by name."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


@dataclass(frozen=True)
class Plan:
    """Steps, samples a step, and an optimiser (AdamW, or gradient descent with momentum, whose weight decay
    is part of the gradient) with linear warm-up and cosine decay to a tenth of the peak."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    held_out: float = 0.1
    held_out_most: int = 64
    evaluate_every: int = 25
    save_every: int = 50
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (from 0)."""
        warm = max(1, round(self.steps * self.warmup))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permutation(length: int, *parts: object) -> list[int]:
    """A permutation of ``range(length)`` that the parts determine."""
    generator = torch.Generator().manual_seed(derived_seed(*parts))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


def split(samples: int, plan: Plan) -> tuple[list[int], list[int]]:
    """Sample numbers (training, held out). Fewer than 8 samples are all trained on: no guard."""
    if samples < 8 or plan.held_out <= 0:
        return list(range(samples)), []
    order = permutation(samples, plan.seed, "held-out")
    held = min(plan.held_out_most, max(1, round(samples * plan.held_out)))
    return sorted(order[held:]), sorted(order[:held])


def indices_at(step: int, training: list[int], plan: Plan) -> list[int]:
    """The samples of ``step``: every epoch is another permutation, and each sample comes once in an epoch."""
    count, first = len(training), step * plan.batch_size
    chosen: list[int] = []
    while len(chosen) < plan.batch_size:
        epoch, offset = divmod(first + len(chosen), count)
        order = permutation(count, plan.seed, "epoch", epoch)
        chosen += [training[n] for n in order[offset : offset + plan.batch_size - len(chosen)]]
    return chosen


@dataclass
class _State:
    """Where a run is: all of it is saved, so all of it comes back."""

    step: int
    moments: dict[str, dict[str, Tensor]]
    best: dict[str, Tensor]
    best_step: int
    best_loss: float | None
    curve: list[dict[str, float | int | None]]
    stopped: str | None = None


class Trainer:
    """Runs a plan on something trained; ``run`` returns the history for the report. ``name`` begins the names
    of its checkpoints; ``feed`` gives the batch of a step (default: `indices_at` of the data)."""

    def __init__(
        self,
        trained: Trained,
        loss: Loss,
        data: TrainingData,
        plan: Plan,
        store: Store,
        observer: Observer,
        hooks: Sequence[Hook] = (),
        name: str = "recovery",
        feed: Callable[[int], Batch] | None = None,
    ) -> None:
        self.trained, self.loss, self.data, self.plan = trained, loss, data, plan
        self.store, self.observer = store, observer
        self.hooks, self.name, self.feed = tuple(hooks), name, feed
        self.training, self.held = split(len(data), plan)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last saved step if there is one, and leave the best state in the model.

        Raises RecoveryDiverged when not even the first step has a finite loss.
        """
        self.trained.train(True)
        state = self._restore() or self._fresh()
        while state.step < self.plan.steps and state.stopped is None:
            self._step(state)
        self._keep_best(state)
        return self._history(state)

    def _fresh(self) -> _State:
        masters = self.trained.masters
        state = _State(
            step=0,
            moments={
                moment: {name: torch.zeros_like(value) for name, value in masters.items()}
                for moment in STATES[self.plan.optimiser]
            },
            best=self._snapshot(),
            best_step=0,
            best_loss=self._held_out_loss(),
            curve=[],
        )
        state.curve.append({"step": 0, "loss": None, "held_out": state.best_loss, "rate": 0.0})
        return state

    def _step(self, state: _State) -> None:
        plan, step = self.plan, state.step
        batch = self.feed(step) if self.feed else self.data.batch(indices_at(step, self.training, plan))
        value = self.loss(batch)
        loss = float(value.detach())
        if not math.isfinite(loss):
            if step == 0:
                raise RecoveryDiverged("the loss of the recovery is not finite at its first step")
            state.stopped = f"the loss is not finite at step {step + 1}; the best state before it is kept"
            self.observer.log(state.stopped)
            return
        value.backward()  # type: ignore[no-untyped-call]
        self.trained.gather()
        with torch.no_grad():
            self._clip()
            self._update(state)
        self.trained.publish()
        state.step = step + 1
        self._watch(state, loss)
        if state.step == plan.steps or state.step % plan.save_every == 0:
            self._save(state)
        self.observer.progress(state.step, plan.steps)

    def _update(self, state: _State) -> None:
        """The optimiser's step, between what the hooks add to the gradients and make of the masters."""
        plan, step, masters = self.plan, state.step, self.trained.masters
        for hook in self.hooks:
            hook.after_gradients(masters, step)
        rate, decay = plan.rate(step), plan.weight_decay
        for name, master in masters.items():
            kept = {moment: values[name] for moment, values in state.moments.items()}
            if plan.optimiser == "adamw":
                adamw(master, kept["mean"], kept["square"], step + 1, rate, decay)
            else:
                sgd(master, kept["velocity"], rate, plan.momentum, decay, nesterov=plan.nesterov)
        for hook in self.hooks:
            hook.after_step(masters, step)
        for master in masters.values():
            master.grad = None

    def _clip(self) -> None:
        """Scale all gradients down together when their norm is above the limit."""
        gradients = [m.grad for m in self.trained.masters.values() if m.grad is not None]
        if not gradients:
            return
        norm = float(torch.stack([g.double().square().sum().cpu() for g in gradients]).sum().sqrt())
        if norm > self.plan.clip:
            for gradient in gradients:
                gradient.mul_(self.plan.clip / norm)

    def _watch(self, state: _State, loss: float) -> None:
        """Measure the held-out part at intervals and remember the best state."""
        plan = self.plan
        if state.step % plan.evaluate_every and state.step != plan.steps:
            return
        held = self._held_out_loss()
        state.curve.append(
            {"step": state.step, "loss": loss, "held_out": held, "rate": plan.rate(state.step - 1)}
        )
        named = self.name.replace("-", "_")
        self.observer.metric(f"{named}_loss", loss)
        if held is not None:
            self.observer.metric(f"{named}_held_out_loss", held)
        better = held is not None and (state.best_loss is None or held < state.best_loss)
        if better or not self.held:
            state.best, state.best_step, state.best_loss = self._snapshot(), state.step, held

    def _held_out_loss(self) -> float | None:
        """Mean loss of the held-out samples, one batch at a time; None when nothing is held out."""
        if not self.held:
            return None
        total = 0.0
        self.trained.train(False)
        with torch.no_grad():
            for start in range(0, len(self.held), self.plan.batch_size):
                chosen = self.held[start : start + self.plan.batch_size]
                total += float(self.loss(self.data.batch(chosen))) * len(chosen)
        self.trained.train(True)
        mean = total / len(self.held)
        return mean if math.isfinite(mean) else None

    def _values(self) -> dict[str, Tensor]:
        return {**self.trained.masters, **self.trained.buffers}

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._values().items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._values().items():
                value.copy_(values[name])
        self.trained.publish()

    def _keep_best(self, state: _State) -> None:
        self._put(state.best)
        self.trained.train(False)

    def _save(self, state: _State) -> None:
        tensors = {f"best/{name}": value for name, value in state.best.items()}
        if state.step < self.plan.steps:
            for part, values in {"master": self._snapshot(), **state.moments}.items():
                tensors |= {f"{part}/{name}": value for name, value in values.items()}
        for place, hook in enumerate(self.hooks):
            tensors |= {f"hook/{place}/{name}": value for name, value in hook.state().items()}
        data = {
            "step": state.step,
            "best_step": state.best_step,
            "best_loss": state.best_loss,
            "curve": state.curve,
        }
        self.store.save(checkpoint_name(state.step, self.name), tensors, data)
        self.store.discard(name for name in self._saved_before(state.step) if self.store.has(name))

    def _saved_before(self, step: int) -> list[str]:
        """Names of the checkpoints of earlier steps, the newest first."""
        every = self.plan.save_every
        return [checkpoint_name(n, self.name) for n in range((step - 1) // every * every, 0, -every)]

    def _restore(self) -> _State | None:
        plan = self.plan
        names = [checkpoint_name(plan.steps, self.name), *self._saved_before(plan.steps)]
        found = next((name for name in names if self.store.has(name)), None)
        if found is None:
            return None
        tensors, data = self.store.load(found)

        def part(kind: str, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensors[f"{kind}/{name}"].to(value.device) for name, value in of.items()}

        finished = data["step"] >= plan.steps
        if not finished:
            self._put(part("master", self._values()))
        for place, hook in enumerate(self.hooks):
            of = f"hook/{place}/"
            hook.restore({key.removeprefix(of): one for key, one in tensors.items() if key.startswith(of)})
        self.observer.progress(int(data["step"]), plan.steps)
        return _State(
            step=int(data["step"]),
            moments={}
            if finished
            else {moment: part(moment, self.trained.masters) for moment in STATES[plan.optimiser]},
            best=part("best", self._values()),
            best_step=int(data["best_step"]),
            best_loss=data["best_loss"],
            curve=list(data["curve"]),
        )

    def _history(self, state: _State) -> dict[str, Any]:
        return {
            "steps": state.step,
            "best_step": state.best_step,
            "held_out_samples": len(self.held),
            "training_samples": len(self.training),
            "trained_parameters": sum(value.numel() for value in self.trained.masters.values()),
            "curve": state.curve,
            "stopped": state.stopped,
        }


def checkpoint_name(step: int, name: str = "recovery") -> str:
    """The name under which the state after ``step`` steps is stored."""
    return f"{name}-{step:06d}"

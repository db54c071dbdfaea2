"""Recovery: zeros stay exact, what is trained is merged, an interrupted run ends with the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compression.checkpoint import Store
from compression.errors import RecoveryDiverged, RecoveryImpossible
from compression.evaluation import stock
from compression.evaluation.types import CLASSIFICATION, FEATURES, GENERATION, Batch
from compression.recovery.masked import MaskedLowRank, effective_weight
from compression.recovery.optimisers import adamw
from compression.recovery.registry import load_all, recover
from compression.recovery.training import Plan, checkpoint_name, indices_at, split
from compression.recovery.types import RecoveryContext, RecoveryResult
from tests.tiny_models import tiny_bert, tiny_llama

TASKS = (GENERATION, CLASSIFICATION, FEATURES)


class Samples:
    """Random token sequences; for classifiers the label is a property of the text."""

    def __init__(self, task: str, count: int = 24, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(7)
        self.task = task
        self.tokens = torch.randint(5, 260, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> Batch:
        tokens = self.tokens[list(indices)]
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        batch["attention_mask"][0, -3:] = 0
        if self.task == CLASSIFICATION:
            batch["labels"] = (tokens[:, 0] > 130).long()
        return batch


class Recorder:
    """An observer that remembers; it stops the run after a number of steps when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.metrics: list[tuple[str, float]] = []
        self.stop_after = stop_after

    def progress(self, done: int, total: int) -> None:
        self.steps.append(done)
        if done == self.stop_after:
            raise KeyboardInterrupt

    def log(self, message: str) -> None:
        self.metrics.append((message, 0.0))

    def metric(self, name: str, value: float) -> None:
        self.metrics.append((name, value))


class Case:
    """A dense model, the same model with half of each prunable weight at zero, and the masks."""

    def __init__(self, root: Path, task: str, dtype: str = "float32", masked: bool = True) -> None:
        self.root, self.task = root, task
        if task == GENERATION:
            self.dense = tiny_llama(root / "dense", dtype=dtype, tied=True)
            kinds = ("_proj.weight",)
        else:
            labels = ["low", "high"] if task == CLASSIFICATION else None
            self.dense = tiny_bert(root / "dense", labels=labels, dtype=dtype)
            kinds = ("query.weight", "key.weight", "value.weight", "dense.weight")
        self.pruned = root / "pruned"
        shutil.copytree(self.dense, self.pruned)
        tensors = load_file(self.pruned / "model.safetensors")
        self.sites = [n for n in tensors if n.endswith(kinds) and "pooler" not in n]
        self.masks: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(3)
        for name in self.sites:
            mask = torch.rand(tensors[name].shape, generator=generator) > 0.5
            self.masks[name] = mask
            tensors[name] = torch.where(mask, tensors[name], 0.0).to(tensors[name].dtype)
        save_file(tensors, self.pruned / "model.safetensors", metadata={"format": "pt"})
        if not masked:
            self.masks = {}

    def context(
        self, method: str, tag: str = "a", observer: Recorder | None = None, **changes: object
    ) -> RecoveryContext:
        settings: dict[str, object] = {
            "method": method,
            "options": {"evaluate_every": 4, "save_every": 4, "batch_size": 4},
            "steps": 12,
            "seed": 1,
            "task": self.task,
            "pruned": self.pruned,
            "dense": self.dense,
            "output": self.root / f"output-{tag}",
            "masks": self.masks,
            "sites": tuple(self.sites),
            "data": Samples(self.task),
            "store": Store(self.root / f"store-{tag}", "key"),
            "observer": observer or Recorder(),
        }
        return RecoveryContext(**(settings | changes))  # type: ignore[arg-type]

    def recovered(self, result: RecoveryResult) -> dict[str, Tensor]:
        return {name: value for path in result.files for name, value in load_file(path).items()}

    def folder(self, result: RecoveryResult) -> Path:
        """The pruned folder with the recovered tensors in it, for the stock loader."""
        target = self.root / "merged"
        shutil.copytree(self.pruned, target, dirs_exist_ok=True)
        tensors = load_file(target / "model.safetensors") | self.recovered(result)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["lora", "distillation"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zeros_stay_and_the_held_out_loss_falls(tmp_path: Path, method: str, task: str, dtype: str) -> None:
    case = Case(tmp_path, task, dtype)
    options = {"evaluate_every": 5, "save_every": 20, "batch_size": 8, "learning_rate": 3e-3}
    result = recover(case.context(method, options=options, steps=30))
    tensors = case.recovered(result)
    assert set(case.masks) <= set(tensors) == set(result.changed)
    before = load_file(case.pruned / "model.safetensors")
    for name, mask in case.masks.items():
        assert tensors[name].dtype == before[name].dtype
        assert not tensors[name][~mask].any()
        assert not torch.equal(tensors[name], before[name])
    curve = result.history["curve"]
    assert result.history["best_step"] > 0
    assert min(point["held_out"] for point in curve) < 0.97 * curve[0]["held_out"]


@pytest.mark.parametrize("method", ["lora", "distillation"])
@pytest.mark.parametrize("stop_after", [1, 5, 8, 11])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, method: str, stop_after: int) -> None:
    case = Case(tmp_path, GENERATION, "bfloat16" if stop_after == 5 else "float32")
    whole = case.recovered(recover(case.context(method, "whole")))
    with pytest.raises(KeyboardInterrupt):
        recover(case.context(method, "cut", Recorder(stop_after)))
    again = Recorder()
    parts = case.recovered(recover(case.context(method, "cut", again)))
    assert again.steps[0] >= stop_after // 4 * 4  # it went on from the last saved step
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value.view(torch.uint8), parts[name].view(torch.uint8)), name


def test_a_finished_recovery_is_not_run_again(tmp_path: Path) -> None:
    case = Case(tmp_path, GENERATION)
    first = recover(case.context("lora"))
    observer = Recorder()
    second = recover(case.context("lora", observer=observer))
    assert observer.steps == [12]
    assert case.recovered(first).keys() == case.recovered(second).keys()
    assert first.history == second.history
    assert Store(tmp_path / "store-a", "key").names("recovery-") == [checkpoint_name(12)]


@pytest.mark.parametrize("task", TASKS)
def test_what_was_trained_is_what_the_stock_loader_computes(tmp_path: Path, task: str) -> None:
    """Logits of the adapted model equal those of the merged files, bit for bit."""
    from compression.recovery.lora import LoraOptions, attach

    case = Case(tmp_path, task)
    context = case.context("lora")
    model = stock.load(case.pruned, task)
    layers = attach(model, context, LoraOptions())
    with torch.no_grad():
        for layer in layers.values():
            layer.b.normal_(std=0.02)
    merged = load_file(case.pruned / "model.safetensors")
    merged |= {site: layer.merged() for site, layer in layers.items()}
    save_file(merged, case.pruned / "model.safetensors", metadata={"format": "pt"})
    batch = Samples(task).batch(range(4))
    with torch.no_grad():
        assert torch.equal(
            stock.answer(model, batch, task), stock.answer(stock.load(case.pruned, task), batch, task)
        )


@pytest.mark.parametrize("method", ["lora", "distillation"])
def test_without_masks_every_weight_is_free(tmp_path: Path, method: str) -> None:
    """After layers were dropped there are no masks: weights that are zero by chance may move."""
    case = Case(tmp_path, GENERATION, masked=False)
    tensors = case.recovered(recover(case.context(method, steps=4)))
    assert set(case.sites) <= set(tensors)
    assert all((tensors[name] != 0).float().mean() > 0.9 for name in case.sites)


def test_fewer_layers_learn_from_the_whole_model(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense", layers=4)
    pruned = tiny_llama(tmp_path / "pruned", layers=2)
    case = Case(tmp_path / "case", GENERATION)
    sites = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(2)]
    for method in ("lora", "distillation"):
        context = case.context(method, method, dense=dense, pruned=pruned, masks={}, sites=sites)
        result = recover(context)
        assert set(sites) <= set(result.changed)
        assert result.history["curve"][-1]["held_out"] < result.history["curve"][0]["held_out"]


def test_training_that_harms_is_undone(tmp_path: Path) -> None:
    """With a rate that wrecks the model, the best state is the one before training."""
    case = Case(tmp_path, GENERATION)
    options = {"learning_rate": 1.0, "evaluate_every": 4, "batch_size": 4, "loss": "task"}
    result = recover(case.context("distillation", options=options))
    assert result.history["best_step"] == 0
    before = load_file(case.pruned / "model.safetensors")
    for name, value in case.recovered(result).items():
        assert torch.equal(value, before[name])


def test_a_model_that_was_broken_before_cannot_be_trained(tmp_path: Path) -> None:
    case = Case(tmp_path, GENERATION)
    tensors = load_file(case.pruned / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, case.pruned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecoveryDiverged, match="first step"):
        recover(case.context("lora"))


def test_targets_limit_what_is_trained(tmp_path: Path) -> None:
    case = Case(tmp_path, GENERATION)
    options = {"targets": ["*.mlp.*", r"re:layers\.0\.self_attn\.q"], "rank": 2}
    result = recover(case.context("lora", options=options, steps=2))
    assert len(result.changed) == 3 * 2 + 1
    with pytest.raises(RecoveryImpossible, match="no prunable weight matches"):
        recover(case.context("lora", "b", options={"targets": ["*.nothing"]}))


def test_a_headless_model_has_no_task_loss(tmp_path: Path) -> None:
    case = Case(tmp_path, FEATURES)
    with pytest.raises(RecoveryImpossible, match="distillation"):
        recover(case.context("lora", options={"loss": "task"}))


@pytest.mark.parametrize("task", [GENERATION, CLASSIFICATION])
def test_the_task_loss_is_learned(tmp_path: Path, task: str) -> None:
    case = Case(tmp_path, task)
    options = {"loss": "task", "learning_rate": 1e-2, "held_out": 0.0, "evaluate_every": 5}
    history = recover(case.context("lora", options=options, steps=30)).history
    losses = [point["loss"] for point in history["curve"][1:]]
    assert losses[-1] < losses[0]
    assert history["held_out_samples"] == 0


def test_no_recovery_changes_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path, GENERATION)
    assert recover(case.context("none", options={})) == RecoveryResult("none")


def test_every_option_has_a_default_and_a_description() -> None:
    for entry in load_all():
        schema = entry.options.model_json_schema()
        assert schema["additionalProperties"] is False
        for name, field in schema.get("properties", {}).items():
            assert field["description"].endswith("."), name
            assert "default" in field, name


def test_the_masked_layer_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 5).requires_grad_(False)
    mask = torch.rand(5, 6) > 0.4
    layer = MaskedLowRank(linear, mask, rank=3, scale=1.5, seed=0)
    with torch.no_grad():
        layer.b.normal_()
    x = torch.randn(2, 4, 6, requires_grad=True)
    layer(x).square().sum().backward()
    a, b = layer.a.detach().clone().requires_grad_(), layer.b.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    weight = (linear.weight + 1.5 * b @ a) * mask
    nn.functional.linear(y, weight, linear.bias).square().sum().backward()
    torch.testing.assert_close(layer.a.grad, a.grad)
    torch.testing.assert_close(layer.b.grad, b.grad)
    torch.testing.assert_close(x.grad, y.grad)


def test_pruned_places_hold_positive_zero() -> None:
    """Minus zero would compare equal and still be other bytes."""
    weight = -torch.ones(4, 4)
    merged = effective_weight(weight, torch.zeros(2, 4), torch.zeros(4, 2), 1.0, torch.eye(4).bool())
    assert not torch.signbit(merged[~torch.eye(4).bool()]).any()


def test_the_default_rate_suits_the_width(tmp_path: Path) -> None:
    case = Case(tmp_path, GENERATION)
    for method, rate in (("lora", 0.016 / 32**0.5), ("distillation", 0.1 / 32)):
        found = recover(case.context(method, method, options={}, steps=1)).history
        assert found["options"]["learning_rate"] == pytest.approx(rate)
        assert found["curve"][-1]["rate"] == pytest.approx(rate)


def test_adamw_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = torch.randn(7, 3)
    theirs = ours.clone().requires_grad_()
    optimiser = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    mean, square = torch.zeros_like(ours), torch.zeros_like(ours)
    for step in range(5):
        gradient = torch.randn(7, 3)
        ours.grad, theirs.grad = gradient, gradient.clone()
        adamw(ours, mean, square, step + 1, 0.01, 0.1)
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_batches_depend_on_seed_and_step_alone() -> None:
    plan = Plan(steps=9, batch_size=4, learning_rate=1.0, seed=5)
    training, held = split(40, plan)
    assert sorted(training + held) == list(range(40))
    assert len(held) == 4
    steps = [indices_at(step, training, plan) for step in range(9)]
    assert sorted(n for step in steps for n in step) == training  # 36 samples: one epoch
    assert steps[3] == indices_at(3, training, plan)
    assert steps != [indices_at(step, training, Plan(9, 4, 1.0, seed=6)) for step in range(9)]


def test_the_learning_rate_rises_and_falls() -> None:
    plan = Plan(steps=100, batch_size=1, learning_rate=1.0, warmup=0.1)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)

"""Whole jobs whose units are chosen by sub-models or by the predictions; killed between them and resumed."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compression import pipeline
from compression.anatomy.families import family_of
from compression.checkpoint import Store
from compression.divergence import Judge
from compression.errors import SpecificationInvalid
from compression.evaluation import stock
from compression.evaluation.types import rows
from compression.gradients import sequence_loss
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.report import schema
from compression.stages.calibration_sets import _rows
from compression.submodels import BETWEEN_SAVES, STEP, Masked, Submodels
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_width_jobs import _job
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_llama, write_byte_tokenizer

QUICK: dict[str, dict[str, Any]] = {
    "2ssp": {"two_stage_sequences": 2},
    "multipruner": {"three_stage_part_sequences": 2, "three_stage_sequences": 2},
    "bonsai": {"submodel_count": 10, "submodel_sequences": 2, "submodel_fraction": 0.2},
    "nirvana": {"calibration_sets": 3, "calibration_set_sequences": 4},
}


@pytest.mark.parametrize("recipe", QUICK)
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    asked = _job(
        tmp_path, recipe, {"sparsity": 0.45}, output={"layout": "packaged"}, options=QUICK[recipe]
    )  # fmt: skip
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    # To a step: eight neurons, or a head where neurons are spent.
    assert 0.45 - 1e-9 <= report["target"]["achieved"] < 0.47
    assert report["verification"]["max_abs_difference"] <= 1e-5
    neurons, heads = (one["layers"] for one in report["widths"]["structures"])
    assert heads[0] >= 1
    if recipe == "2ssp":
        assert set(heads) <= {0, 4}
        assert max(neurons) - min(neurons) <= 8
    elif recipe in ("bonsai", "nirvana"):
        assert min(*neurons, *heads) > 0
    model = stock.load(outcome.artifact, "text-generation")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_padded_by_submodels_with_a_baseline(tmp_path: Path) -> None:
    """The baseline has the numbers, not the units, that the sub-models found."""
    evaluation = {"measure": [], "samples": 4, "baselines": ["random"]}
    asked = _job(
        tmp_path, "bonsai", {"sparsity": 0.3}, output={"layout": "padded"}, evaluation=evaluation,
        options=QUICK["bonsai"],
    )  # fmt: skip
    report = json.loads(pipeline.run(asked, Recorder()).report.read_text())
    schema.validate(report)
    (baseline,) = report["baselines"]
    assert baseline["metrics"]["perplexity"] != report["quality"]["pruned"]["perplexity"]


def test_killed_between_submodels_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Losses that were kept are not measured again, and what is chosen is the same."""
    options = {**QUICK["bonsai"], "submodel_count": 30}
    asked = _job(tmp_path, "bonsai", {"sparsity": 0.3}, output={"layout": "packaged"}, options=options)
    recorder = Recorder()
    whole = pipeline.run(asked, recorder)
    before = recorder.steps[: recorder.steps.index("allocation")]
    found = [name for name in before if name.startswith(STEP)]
    assert len(found) == 2 * (30 + 1) // BETWEEN_SAVES
    work = tmp_path / "again"
    # Each of these steps is a file and its record; it is killed before the last of them but one.
    place = sum(2 if name in found else 1 for name in before) - 2
    assert run_and_kill(tmp_path, work, "before_checkpoint_rename", place) == -signal.SIGKILL
    left = sorted(path.stem for path in work.rglob(f"{STEP}*.json"))
    assert left
    assert left == found[: len(left)] != found
    assert not list(work.rglob("allocation.json"))
    resumed = Recorder()
    again = pipeline.run(request(tmp_path, work), resumed)
    assert hashes(again.artifact) == hashes(whole.artifact)
    assert [name for name in resumed.steps if name.startswith(STEP)] == found[len(left) :]


@pytest.mark.parametrize(
    ("recipe", "more", "sets", "why"),
    [
        ("nirvana", {"output": {"layout": "padded"}}, 11, "fewer calibration sequences"),
        ("expert-drop", {"structure": {"granularity": "expert"}}, 2, "nothing else"),
    ],
)
def test_sets_that_cannot_be(recipe: str, more: dict[str, Any], sets: int, why: str, tmp_path: Path) -> None:
    if recipe == "expert-drop":
        tiny_family(tmp_path / "model", "MixtralForCausalLM", vocab_size=264)
        write_byte_tokenizer(tmp_path / "model", context=60)
    with pytest.raises(SpecificationInvalid) as caught:
        _job(tmp_path, recipe, {"sparsity": 0.4}, options={"calibration_sets": sets}, **more)
    (fault,) = caught.value.errors
    assert fault.pointer == "/options/calibration_sets"
    assert why in fault.message


def test_sets_share_all_sequences_out() -> None:
    batches = [
        {"input_ids": torch.arange(12).reshape(4, 3), "attention_mask": torch.ones(4, 3)},
        {"input_ids": torch.arange(12, 21).reshape(3, 3), "attention_mask": torch.ones(3, 3)},
    ]
    sets = [list(_rows(batches, 3, number)) for number in range(3)]
    firsts = [[int(row[0]) // 3 for batch in part for row in batch["input_ids"]] for part in sets]
    assert firsts == [[0, 3, 6], [1, 4], [2, 5]]
    assert [sum(map(rows, part)) for part in sets] == [3, 2, 2]


class Sub:
    """A tiny model, its groups, and two sequences."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = tiny_llama(folder / "model", layers=3, hidden=32, heads=4, key_value_heads=2, ffn=40)
        admission = admit_model(folder_sources(self.folder))
        self.model = StreamedModel(self.folder, admission.config, admission.family)
        names = self.model.reader.names()
        family = family_of(admission.architecture)
        self.groups = list(family.groups(admission.config, names, ["neuron", "head"]))
        self.batches = [{"input_ids": torch.arange(3, 23).reshape(2, 10)}]
        self.store = store
        self.judged = 0

    def losses(self) -> Submodels:
        return Submodels(self.model.reader, self.groups, self._judge, Store(self.store, "key"))

    def _judge(self, sequences: int) -> Judge:
        self.judged += 1
        return Judge(self.model, self.batches, sequences)

    def reference(self, kept: dict[str, Tensor]) -> float:
        """The stock model in float64, hooks in place of changed weights."""
        model = stock.load(self.folder, "text-generation").double()
        for layer, block in enumerate(model.model.layers):
            for name, reader in (
                (f"neuron.{layer}", block.mlp.down_proj),
                (f"head.{layer}", block.self_attn.o_proj),
            ):
                if name in kept:
                    count = 40 if "neuron" in name else 2
                    mask = torch.zeros(count, dtype=torch.float64)
                    mask[kept[name]] = 1
                    reader.register_forward_pre_hook(
                        lambda module, args, mask=mask: (
                            args[0] * mask.repeat_interleave(args[0].shape[-1] // len(mask)),
                        )
                    )
        with torch.no_grad():
            found = [
                float(sequence_loss(model(ids[None]).logits, {"input_ids": ids[None]}))
                for ids in self.batches[0]["input_ids"]
            ]
        return sum(found) / len(found)


def test_losses_of_submodels_against_the_stock_model(tmp_path: Path) -> None:
    sub = Sub(tmp_path, tmp_path / "store")
    losses = sub.losses()
    dice = torch.Generator().manual_seed(2)
    for _ in range(4):
        kept = {
            group.name: torch.randperm(group.count, generator=dice)[
                : int(torch.randint(group.count + 1, (1,), generator=dice))
            ]
            for group in sub.groups
        }
        assert losses.loss(kept, 2) == pytest.approx(sub.reference(kept), abs=2e-6)
    whole = {group.name: torch.arange(group.count) for group in sub.groups}
    assert losses.loss(whole, 2) == losses.loss({}, 2) == pytest.approx(sub.reference({}), abs=2e-6)
    assert sub.judged == 5


def test_losses_are_kept_and_only_in_whole_steps(tmp_path: Path) -> None:
    sub = Sub(tmp_path, tmp_path / "store")
    losses = sub.losses()
    asked = [{"neuron.1": torch.arange(n)} for n in range(BETWEEN_SAVES + 3)]
    found = [losses.loss(kept, 1) for kept in asked]
    judged = sub.judged
    again = sub.losses()
    assert [again.loss(kept, 1) for kept in asked] == found
    assert sub.judged == judged + 3
    assert Store(sub.store, "key").names(STEP) == [f"{STEP}0000"]
    # The order in which units are named says nothing; how many sequences does.
    again.loss({"neuron.1": torch.tensor([1, 0])}, 1)
    assert sub.judged == judged + 3
    again.loss({"neuron.1": torch.tensor([1, 0])}, 2)
    assert sub.judged == judged + 4


def test_losses_that_overflow_are_infinite_and_stay_so(tmp_path: Path) -> None:
    class Overflowing:
        def loss(self, changes: object) -> float:
            return math.nan

    sub = Sub(tmp_path, tmp_path / "store")
    store = Store(tmp_path / "store", "key")
    losses = Submodels(sub.model.reader, sub.groups, lambda n: Overflowing(), store)  # type: ignore[arg-type,return-value]
    asked = [{"neuron.1": torch.arange(n)} for n in range(BETWEEN_SAVES)]
    assert all(losses.loss(kept, 1) == math.inf for kept in asked)
    again = Submodels(sub.model.reader, sub.groups, sub._judge, Store(tmp_path / "store", "key"))
    assert again.loss(asked[0], 1) == math.inf
    assert sub.judged == 0


def test_only_what_a_layer_needs_is_read(tmp_path: Path) -> None:
    """Nothing of other layers is held: weights are read when the layer is asked for."""
    sub = Sub(tmp_path, tmp_path / "store")
    read: list[str] = []

    class Watched:
        def tensor(self, name: str) -> Tensor:
            read.append(name)
            return sub.model.reader.tensor(name)

    groups = {group.name: group for group in sub.groups}
    masked = Masked(Watched(), groups, {"neuron.2": torch.tensor([0]), "head.0": torch.tensor([1])})  # type: ignore[arg-type]
    assert sorted(masked) == [0, 2]
    assert not read
    assert masked.get(1) is None
    changed = masked[2]["model.layers.2.mlp.down_proj.weight"]
    assert read == ["model.layers.2.mlp.down_proj.weight"]
    assert (changed != 0).any(0).tolist() == [True] + [False] * 39

"""Quality, damage, cost and measurement against independent computations with the stock model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from compression.anatomy import count_macs, inspect
from compression.evaluation import probe, stock
from compression.evaluation.cost import cost
from compression.evaluation.macs import counted_macs
from compression.evaluation.measure import MeasurementFailed, measure, with_pruned_memory
from compression.evaluation.quality import UnknownMetric, evaluate
from compression.evaluation.turns import LEAST_ROUNDS, interleave, summarise
from compression.evaluation.types import CLASSIFICATION, FEATURES, GENERATION, Batch
from compression.export.artifact import weight_bytes
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.tiny_models import tiny_bert, tiny_llama


@dataclass(frozen=True)
class Data:
    task: str
    batches: tuple[Batch, ...]
    labels: tuple[str, ...] | None = None


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 260, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: int, length: int, seed: int = 0) -> Batch:
    mask = torch.ones(rows, length, dtype=torch.int64)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {"input_ids": tokens(rows, length, seed), "attention_mask": mask}


def halved(source: Path, target: Path) -> Path:
    """A copy whose two-dimensional projections lost their smaller half."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2 and ("proj" in name or ".dense." in name):
            weights[name] = torch.where(weight.abs() > weight.abs().median(), weight, 0.0)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_perplexity_is_that_of_the_stock_loss(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    data = Data(GENERATION, ({"input_ids": tokens(3, 17)}, {"input_ids": tokens(2, 9, 1)}))
    found = evaluate(StreamedModel(folder), data, ["perplexity"])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for batch in data.batches:
        for row in batch["input_ids"]:
            with torch.no_grad():
                loss = model(row[None], labels=row[None]).loss
            total += float(loss) * (len(row) - 1)
            count += len(row) - 1
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["counts"] == {
        "batches": 2,
        "sequences": 5,
        "tokens": 69,
        "predicted_tokens": count,
    }
    assert found["divergence"] is None
    assert json.loads(json.dumps(found)) == found


def test_padding_is_not_predicted(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    batch = padded(3, 12)
    whole = evaluate(StreamedModel(folder), Data(GENERATION, (batch,)), ["perplexity"])
    rows = [{"input_ids": batch["input_ids"][n : n + 1, : 12 - n]} for n in range(3)]
    apart = evaluate(StreamedModel(folder), Data(GENERATION, tuple(rows)), ["perplexity"])
    assert whole["counts"]["predicted_tokens"] == apart["counts"]["predicted_tokens"] == 11 + 10 + 9
    assert whole["metrics"]["loss"] == pytest.approx(apart["metrics"]["loss"], rel=1e-5)


def test_a_model_does_not_diverge_from_itself(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    data = Data(GENERATION, (padded(3, 12),))
    found = evaluate(StreamedModel(folder), data, ["perplexity"], reference=StreamedModel(folder))
    assert found["divergence"] == {
        "mean_kl": 0.0,
        "top1_agreement": 1.0,
        "max_abs_logit_difference": 0.0,
        "positions": 12 + 11 + 10,
    }


def test_divergence_is_that_of_its_formula(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "m")
    pruned = halved(dense, tmp_path / "p")
    data = Data(GENERATION, ({"input_ids": tokens(2, 20)},))
    found = evaluate(StreamedModel(pruned), data, [], reference=StreamedModel(dense))["divergence"]
    with torch.no_grad():
        first, second = (
            stock.answer(stock.load(m, GENERATION), data.batches[0], GENERATION) for m in (dense, pruned)
        )
    p, q = functional.log_softmax(first.double(), -1), functional.log_softmax(second.double(), -1)
    assert found["mean_kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    agreed = (first.argmax(-1) == second.argmax(-1)).float().mean()
    assert found["top1_agreement"] == pytest.approx(float(agreed))


def test_classifiers_are_judged_class_by_class(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "m", labels=["a", "b", "c"])
    batch = padded(8, 10)
    with torch.no_grad():
        predicted = stock.answer(stock.load(folder, CLASSIFICATION), batch, CLASSIFICATION).argmax(-1)
    labels = predicted.clone()
    labels[:2] = (labels[:2] + 1) % 3
    data = Data(CLASSIFICATION, (batch | {"labels": labels},), ("a", "b", "c"))
    found = evaluate(StreamedModel(folder), data, ["accuracy"], reference=StreamedModel(folder))
    assert found["metrics"]["accuracy"] == pytest.approx(6 / 8)
    assert found["predictions"] == predicted.tolist()
    assert sum(entry["examples"] for entry in found["classes"]) == 8
    assert sum(entry["correct"] for entry in found["classes"]) == 6
    assert found["divergence"]["top1_agreement"] == 1.0
    assert json.loads(json.dumps(found)) == found


def test_headless_encoders_are_compared_with_the_dense_one(tmp_path: Path) -> None:
    dense = tiny_bert(tmp_path / "m")
    pruned = halved(dense, tmp_path / "p")
    data = Data(FEATURES, (padded(4, 10), padded(4, 6, 1)))
    alone = evaluate(StreamedModel(dense), data, ["embedding_cosine"])
    assert alone["metrics"]["embedding_cosine"] == 1.0
    same = evaluate(StreamedModel(dense), data, [], reference=StreamedModel(dense))
    assert same["metrics"]["embedding_cosine"] == pytest.approx(1.0, abs=1e-6)
    other = evaluate(StreamedModel(pruned), data, [], reference=StreamedModel(dense))
    facts = other["divergence"]["embedding_cosine"]
    assert facts["texts"] == 8
    assert facts["minimum"] <= facts["p05"] <= facts["mean"] < 0.9999


def test_a_broken_model_gives_null_and_not_nan(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    data = Data(GENERATION, ({"input_ids": tokens(2, 8)},))
    found = evaluate(StreamedModel(folder), data, ["perplexity"], reference=StreamedModel(folder))
    assert found["metrics"] == {"loss": None, "perplexity": None}
    assert found["divergence"]["mean_kl"] is None
    json.dumps(found, allow_nan=False)


def test_unknown_metrics_are_refused(tmp_path: Path) -> None:
    data = Data(GENERATION, ({"input_ids": tokens(1, 8)},))
    with pytest.raises(UnknownMetric, match="perplexity"):
        evaluate(StreamedModel(tiny_llama(tmp_path / "m")), data, ["accuracy"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cost_counts_what_is_there(tmp_path: Path, dtype: str) -> None:
    folder = tiny_llama(tmp_path / "m", tied=True, store_tied_head=True, dtype=dtype)
    pruned = halved(folder, tmp_path / "p")
    reader = WeightReader(pruned)
    config = json.loads((pruned / "config.json").read_text())
    inspection = inspect(config, reader.names())
    found = cost(reader, inspection, sequence_length=16, weight_bytes=weight_bytes(pruned))
    model = AutoModelForCausalLM.from_pretrained(pruned)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["nonzeros"] == sum(int(p.count_nonzero()) for p in model.parameters())
    assert found["bytes"] == (pruned / "model.safetensors").stat().st_size
    assert found["dtype"] == dtype
    assert found["sparsity"] == pytest.approx(0.5, abs=0.02)
    removed = sum(site["shape"][0] * site["shape"][1] - site["nonzeros"] for site in found["sites"])
    assert found["macs"] - found["macs_nonzero"] == 16 * removed
    assert found["prunable_parameters"] - found["prunable_nonzeros"] == removed


def test_the_macs_of_the_report_are_those_a_forward_pass_makes(tmp_path: Path) -> None:
    length = 24
    for folder, task in (
        (tiny_llama(tmp_path / "llama", layers=3), GENERATION),
        (tiny_bert(tmp_path / "bert"), FEATURES),
        (tiny_bert(tmp_path / "head", labels=["a", "b", "c"]), CLASSIFICATION),
    ):
        model = stock.load(folder, task)
        model.set_attn_implementation("eager")
        counted = counted_macs(model, {"input_ids": tokens(1, length)}, task)
        inspection = inspect(json.loads((folder / "config.json").read_text()), WeightReader(folder).names())
        assert counted == count_macs(inspection, length).total, task


def test_medians_and_percentiles() -> None:
    found = summarise([5.0, 1.0, 3.0, 2.0, 4.0], tokens=6)
    assert found == {
        "median": 3.0,
        "p10": pytest.approx(1.4),
        "p90": pytest.approx(4.6),
        "repeats": 5,
        "tokens_per_second": 2.0,
    }


def test_runs_are_interleaved_and_take_turns_at_being_first() -> None:
    calls: list[str] = []
    times = interleave(lambda: calls.append("d"), lambda: calls.append("p"), 6, 60.0)
    assert [len(part) for part in times] == [6, 6]
    assert "".join(calls) == "dp" * 2 + "dppd" * 3
    assert [len(part) for part in interleave(lambda: None, lambda: None, 50, 0.0)] == [LEAST_ROUNDS] * 2


def test_fixed_inputs_come_back_as_they_were(tmp_path: Path) -> None:
    batch = padded(2, 6) | {"labels": torch.tensor([0, 1])}
    output = torch.randn(2, 6, 9).bfloat16()
    found = probe.read_inputs(probe.write_inputs(tmp_path / "x.safetensors", [batch], [output], GENERATION))
    assert found.task == GENERATION
    assert found.batches[0].keys() == {"input_ids", "attention_mask"}
    assert torch.equal(found.batches[0]["input_ids"], batch["input_ids"])
    assert torch.equal(found.outputs[0], output)


def test_dense_and_pruned_are_measured_in_one_process(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "m", hidden=64, layers=4)
    pruned = tiny_llama(tmp_path / "p", hidden=64, layers=1)
    inputs = probe.write_inputs(tmp_path / "in.safetensors", [{"input_ids": tokens(2, 64)}], [], GENERATION)
    found = measure(
        dense,
        pruned,
        work=tmp_path / "work",
        inputs=inputs,
        measure=["latency", "memory"],
        repeats=7,
        seconds=5.0,
    )
    latency = found["latency"]
    assert latency["threads"] == 1
    assert latency["device"]
    assert "transformers" in latency["runtime"]
    assert [case["name"] for case in latency["cases"]] == ["forward", "batch", "generate"]
    for case in latency["cases"]:
        for part in ("dense", "pruned"):
            times = case[part]
            assert 0 < times["p10"] <= times["median"] <= times["p90"]
            assert 5 <= times["repeats"] <= 7
        low, high = case["ratio_range"]
        assert 0 < low <= case["ratio"] <= high
    assert found["memory"]["dense"]["process_bytes"] > found["memory"]["dense"]["import_bytes"] > 50_000_000
    both = with_pruned_memory(found, {"memory": dict(found["memory"]["dense"])})
    assert both["memory"]["ratio"] == 1.0


def test_nothing_is_started_when_nothing_is_measured(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    found = measure(missing, missing, work=missing, inputs=missing, measure=[])
    assert found == {"latency": None, "memory": None}
    assert with_pruned_memory(found, {}) == found
    assert not missing.exists()


def test_a_measurement_that_fails_says_so(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    with pytest.raises(MeasurementFailed, match="measuring failed"):
        measure(folder, folder, work=tmp_path, inputs=tmp_path / "none", measure=["memory"])

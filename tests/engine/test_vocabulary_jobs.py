"""Jobs that trim a vocabulary: rows that stay answer as before in every family; plans, recovery, resuming."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.errors import SpecificationInvalid, TargetUnreachable
from compression.evaluation import stock
from compression.loading.admission import admit_model, folder_sources
from compression.loading.data import DataPlan
from compression.report import schema
from compression.stages import data as datasets
from compression.stages import finish, load, prune, retold
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.vocabularies import byte_fallback, byte_level, unigram, with_tokenizer, wordpiece, write_corpus

CALIBRATION = {"dataset": "dst_text", "samples": 4, "sequence_length": 24}
QUICK = {"measure": [], "samples": 4}
_T5 = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
CASES = {
    "LlamaForCausalLM": (byte_fallback, {"tie_word_embeddings": False}, 2),
    "Gemma2ForCausalLM": (byte_fallback, {}, 1),
    "GPT2LMHeadModel": (byte_level, {"bos_token_id": 480, "eos_token_id": 480}, 1),
    "PhiForCausalLM": (byte_level, {}, 3),
    "OPTForCausalLM": (byte_level, {}, 1),
    "BertModel": (wordpiece, {}, 1),
    "RobertaModel": (wordpiece, {"pad_token_id": 1}, 1),
    "DistilBertModel": (wordpiece, {}, 1),
    "T5EncoderModel": (unigram, {}, 1),
    "T5ForConditionalGeneration-tied": (unigram, _T5, 1),
    "MT5ForConditionalGeneration": (unigram, _T5, 2),
}  # fmt: skip
"""The tokenizer of each, what else its config says, how many stored tensors have a row for every token."""


def job(folder: Path, target: dict[str, Any], case: str = "GPT2LMHeadModel", **more: Any) -> Any:
    """The request of a job; the model is made unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config, _ = CASES[case]
    if not (folder / "model").exists():
        with_tokenizer(folder / "model", case, tokenizer(), **config)
    write_corpus(folder / "text.jsonl")
    specification = {
        "recipe": "vocab-trim", "target": target, "calibration": CALIBRATION, "evaluation": QUICK, **more
    }  # fmt: skip
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def answers(folder: Path, ids: list[int]) -> torch.Tensor:
    """What the stock class gives for one sequence, float64 [s, ...]; of a T5 with the ids as target too."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    batch = {"input_ids": torch.tensor([ids])}
    task = "text-generation"
    if architecture.endswith("ConditionalGeneration"):
        task, batch = "text2text-generation", batch | {"decoder_input_ids": torch.tensor([ids])}
    elif "LM" not in architecture:
        task = "feature-extraction"
    with torch.no_grad():
        return stock.answer(stock.load(folder, task), batch, task)[0].double()


@pytest.mark.parametrize("case", CASES)
def test_rows_that_stay_answer_as_before(case: str, tmp_path: Path) -> None:
    asked = job(tmp_path, {"sparsity": 0.1}, case)
    dense, smaller = asked.model, tmp_path / "smaller"
    loaded = load.load(asked, Recorder(), lambda name: None)
    load.check_weights(loaded)
    data = datasets.open_data(loaded)
    pruned = prune.prune(loaded, data)
    finish.write_pruned(loaded, pruned, smaller)
    assert pruned.rows is not None
    rows = pruned.rows.tolist()
    config = json.loads((smaller / "config.json").read_text())
    assert config["vocab_size"] == len(rows)
    assert len(rows) % 8 == 0
    before, after = (load_file(path / "model.safetensors") for path in (dense, smaller))
    for name, tensor in after.items():
        same = before[name].shape == tensor.shape
        assert torch.equal(tensor, before[name] if same else before[name][rows]), name
    cut = {name for name in after if before[name].shape != after[name].shape}
    assert len(cut) == CASES[case][2]
    # Any sequence of new ids, whatever a tokenizer would make of it.
    ids = torch.randint(0, len(rows), (12,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted, found = answers(dense, [rows[number] for number in ids]), answers(smaller, ids)
    hidden = case in ("BertModel", "RobertaModel", "DistilBertModel", "T5EncoderModel")
    wanted = wanted if hidden else wanted[:, rows]
    assert float((wanted - found).abs().max()) <= 1e-5
    _same_texts(dense, smaller, rows)
    _special_ids(dense, smaller, rows)
    again = retold.read_again(loaded, data, pruned)
    judged = prune.judge(loaded, again.evaluation, pruned, data.evaluation)
    assert judged is not None
    if hidden:
        assert judged["metrics"]["embedding_cosine"] == pytest.approx(1, abs=0.3)
    else:
        # Its distribution is the dense one over the rows that stay.
        assert judged["divergence"]["mean_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("case", ["GPT2LMHeadModel", "MT5ForConditionalGeneration", "BertModel"])
def test_texts_of_which_every_token_stays_are_judged_as_before(case: str, tmp_path: Path) -> None:
    asked = job(tmp_path, {"sparsity": 0.008}, case, options={"vocabulary_multiple": 1})
    loaded = load.load(asked, Recorder(), lambda name: None)
    data = datasets.open_data(loaded)
    pruned = prune.prune(loaded, data)
    again = retold.read_again(loaded, data, pruned)
    told = retold.account(data, again, pruned)
    assert told is not None
    assert told["covered"] == 1.0
    assert told["segmentation"]["unchanged"]
    assert told["segmentation"]["dense"] == told["segmentation"]["pruned"]
    # Smaller logits may be put into larger batches: the texts are still the same.
    assert isinstance(again.plan, DataPlan)
    other = again.plan.evaluation("dst_text", 4, 24, 1)
    assert len(other.batches) > len(data.evaluation.batches)  # type: ignore[union-attr]
    account = retold.account(data, replace(again, evaluation=other), pruned)
    assert account is not None
    assert account["segmentation"]["unchanged"]
    judged = prune.judge(loaded, again.evaluation, pruned, data.evaluation)
    dense = finish.quality(loaded, data.evaluation, loaded.dense_model())  # type: ignore[arg-type]
    assert judged is not None
    if case == "BertModel":
        assert judged["metrics"]["embedding_cosine"] == pytest.approx(1, abs=1e-6)
        return
    # Only the probability of tokens that never occur is shared out.
    for metric in ("loss", "bits_per_byte"):
        ratio = judged["metrics"][metric] / dense["metrics"][metric]
        assert 0.98 < ratio <= 1.0, metric


def _same_texts(dense: Path, smaller: Path, rows: list[int]) -> None:
    """Calibration texts whose tokens all stay are the same tokens, also as stock transformers reads them."""
    first, second = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (dense, smaller))
    stock_reader = AutoTokenizer.from_pretrained(smaller)
    texts = [json.loads(line)["text"] for line in (dense.parent / "text.jsonl").read_text().splitlines()]
    known = [text for text in texts if set(first.encode(text).ids) <= set(rows)]
    assert len(known) > 10
    for text in known:
        assert [rows[number] for number in second.encode(text).ids] == first.encode(text).ids
        assert stock_reader(text)["input_ids"] == second.encode(text).ids


def _special_ids(dense: Path, smaller: Path, rows: list[int]) -> None:
    """Special tokens in the settings are the same tokens."""
    for name in ("config.json", "generation_config.json"):
        if not (dense / name).exists():
            continue
        first, second = (json.loads((path / name).read_text()) for path in (dense, smaller))
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            if first.get(key) is not None and key in second:
                assert rows[second[key]] == first[key], (name, key)


def _came_true(asked: Any, report: dict[str, Any], artifact: Path) -> None:
    """What the plan promised is what was written."""
    rows = json.loads((artifact / "secateur" / "vocabulary.json").read_text())["rows"]
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised, cost = plan(asked.specification, inspection), report["cost"]
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == cost["pruned"][name], name
        assert promised["dense"][name] == cost["dense"][name], name
    assert promised["pruned"]["bytes"] == pytest.approx(cost["pruned"]["bytes"], rel=0.02)
    assert promised["cut"]["vocabulary"] == {"dense": report["vocabulary"]["dense"], "kept": len(rows)}
    assert report["vocabulary"]["kept"] == len(rows)
    assert report["target"]["achieved"] == report["vocabulary"]["sparsity"] == pytest.approx(0.3, abs=0.02)
    assert report["verification"]["vocabulary"]["max_abs_difference"] <= 1e-5


def test_quality_is_told_by_byte_and_baselines_are_trimmed_alike(tmp_path: Path) -> None:
    evaluation = QUICK | {"baselines": ["random", "magnitude"], "gates": [
        {"metric": "bits_per_byte", "max_ratio": 1.5}]}  # fmt: skip
    asked = job(tmp_path, {"sparsity": 0.3}, evaluation=evaluation)
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    assert recorder.stages == list(pipeline.STAGES)
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    _came_true(asked, report, outcome.artifact)
    quality = report["quality"]
    assert quality["headline"] == "bits_per_byte"
    # The dense figures again, from scratch: the first rows of the held-out texts, joined.
    counts = quality["counts"]
    nats = quality["dense"]["loss"] * counts["predicted_tokens"]
    assert quality["dense"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / counts["text_bytes"])
    assert counts["text_bytes"] < 200 * 60
    assert report["vocabulary"]["required"] == {"alphabet": 256, "specials": 2}
    assert 0 < report["vocabulary"]["covered"] < 1
    told = report["vocabulary"]["segmentation"]
    assert not told["unchanged"]
    assert told["pruned"] > told["dense"]
    assert any("do not compare" in note for note in report["notes"])
    found = {one["name"]: one["metrics"]["bits_per_byte"] for one in report["baselines"]}
    assert found.keys() == {"random", "magnitude"}
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize("method", ["lora", pytest.param("distillation", marks=pytest.mark.slow)])
def test_the_smaller_model_recovers(method: str, tmp_path: Path) -> None:
    asked = job(tmp_path, {"parameters": 0.9}, recovery={"method": method, "budget": {"steps": 3}})
    report = json.loads(pipeline.run(asked, Recorder()).report.read_text())
    assert report["cost"]["recovered"]["parameters"] <= 0.9 * report["cost"]["dense"]["parameters"]
    assert report["recovery"]["steps"] == 3
    # Before training the teacher's distribution over the rows that stay is the student's own.
    assert report["recovery"]["curve"][0]["held_out"] == pytest.approx(0, abs=1e-6)
    assert "vocabulary" not in report["verification"], "a trained model is another one"


def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    asked = job(tmp_path, {"sparsity": 0.2}, evaluation={"measure": [], "samples": 1})
    whole = pipeline.run(asked, Recorder())
    # Baseline, counts and rows are finished; the tensors are not.
    assert run_and_kill(tmp_path, tmp_path / "again", "before_checkpoint_rename", 6) == -signal.SIGKILL
    steps = {path.stem for path in (tmp_path / "again" / "checkpoints").glob("*.json")}
    assert steps == {"baseline", "token-counts", "vocabulary-rows"}
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)


def test_a_target_beyond_what_must_stay(tmp_path: Path) -> None:
    asked = job(tmp_path, {"sparsity": 0.9})
    recorder = Recorder()
    with pytest.raises(TargetUnreachable) as caught:
        pipeline.run(asked, recorder)
    assert recorder.stages == ["load", "inspect"]
    # 256 bytes, the end token and the added one, rounded to 264 of 486 rows.
    assert "258 must stay: 2 special and added tokens and 256" in str(caught.value)
    assert "Reachable: 0.0124 to 0.4567" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"target": {"sparsity": 0.001}}, "/target/sparsity"),
        ({"target": {"parameters": 0.01}}, "/target/parameters"),
        ({"target": {"macs": 0.9}}, "/target/macs"),
        ({"calibration": None}, "/calibration"),
        ({"structure": {"ignore": ["*"]}}, "/structure/ignore"),
        ({"structure": {"granularity": "layer"}}, "/structure/granularity"),
        ({"options": {"criterion": "wanda"}}, "/options/criterion"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], pointer: str, tmp_path: Path) -> None:
    with pytest.raises(SpecificationInvalid) as caught:
        job(tmp_path, **{"target": {"sparsity": 0.3}, **change})
    assert pointer in [fault.pointer for fault in caught.value.errors]


def test_a_model_without_a_tokenizer_offers_nothing(tmp_path: Path) -> None:
    folder = with_tokenizer(tmp_path / "model", "GPT2LMHeadModel", byte_level())
    assert "vocabulary" in admit_model(folder_sources(folder)).inspection["granularities"]
    (folder / "tokenizer.json").unlink()
    assert "vocabulary" not in admit_model(folder_sources(folder)).inspection["granularities"]

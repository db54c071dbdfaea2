"""Whole jobs: every recipe and family, exact results, repeatable bytes, going on after kill -9."""

from __future__ import annotations

import json
import signal

import jsonschema
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compression import pipeline
from compression.errors import DatasetInvalid, TargetUnreachable, TensorsMismatch, WeightsNotFinite
from compression.evaluation import stock
from compression.recipes import recipes
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.tiny_models import tiny_bert, tiny_llama

CALIBRATION = {"dataset": "dst_text", "samples": 12, "sequence_length": 32}
QUICK = {"measure": []}


def _job(folder, specification, model=None, **options):
    """Make the model and the text of a job in `folder`; gives its request."""
    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        tiny_llama(folder / "model", **({"layers": 3} | options))
    write_texts(folder / "text.jsonl", 40)
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def _weights(folder) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def _sites(tensors):
    ends = ("_proj.weight", "query.weight", "key.weight", "value.weight", "dense.weight")
    return {n: t for n, t in tensors.items() if n.endswith(ends) and "pooler" not in n}


# One of each kind: no data, data, new values, gradients, measured curves. The batteries of the axes have
# them all.
SINGLE = ["magnitude", "wanda", "sparsegpt", "gblm", "distortion-dp"]


@pytest.mark.parametrize(
    ("name", "granularity"), [*((name, "unstructured") for name in SINGLE), ("wanda", "2:4")]
)
def test_every_recipe_of_single_weights(tmp_path, name, granularity):
    specification = {
        "recipe": name,
        "target": {"sparsity": 0.5},
        "structure": {"granularity": granularity},
        "calibration": CALIBRATION,
        "evaluation": QUICK | {"samples": 4},
    }
    recorder = Recorder()
    outcome = pipeline.run(_job(tmp_path, specification), recorder)
    assert recorder.stages == list(pipeline.STAGES)
    tensors, dense = _weights(outcome.artifact), _weights(tmp_path / "model")
    assert tensors.keys() == dense.keys()
    axes = recipes[name].axes
    sites = _sites(tensors)
    assert (
        sum(int((tensor == 0).sum()) for tensor in sites.values())
        == sum(t.numel() for t in sites.values()) // 2
    )
    for site, tensor in sites.items():
        if axes["allocation"] == "uniform":
            assert int((tensor == 0).sum()) == tensor.numel() // 2
        if axes["update"] in ("none", "dsnot"):
            assert torch.equal(tensor[tensor != 0], dense[site][tensor != 0])
    for other in tensors.keys() - _sites(tensors).keys():
        assert torch.equal(tensors[other], dense[other])
    report = json.loads(outcome.report.read_text())
    assert report["target"]["achieved"] == 0.5
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert report["quality"]["pruned"]["perplexity"] > 0
    assert "<html" in outcome.report_html.read_text()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "layer-drop"),
        ("MistralForCausalLM", "wanda"),
        ("Qwen2ForCausalLM", "wanda"),
        ("Qwen2ForCausalLM", "layer-drop"),
    ],
)
def test_every_decoder(tmp_path, architecture, name):
    target = {"layers": 2} if name == "layer-drop" else {"sparsity": 0.3}
    specification = {
        "recipe": name,
        "target": target,
        "calibration": CALIBRATION,
        "evaluation": QUICK | {"samples": 4},
    }
    options = {"architecture": architecture, "dtype": "bfloat16", "shards": 2, "layers": 4, "tied": True}
    outcome = pipeline.run(_job(tmp_path, specification, **options), Recorder())
    model = stock.load(outcome.artifact, "text-generation")
    assert model.config.num_hidden_layers == (2 if name == "layer-drop" else 4)
    assert model.dtype == torch.bfloat16
    settings = json.loads((outcome.artifact / "config.json").read_text())
    if settings.get("layer_types"):
        assert len(settings["layer_types"]) == settings["num_hidden_layers"]


@pytest.mark.parametrize("labels", [None, ["neg", "pos"]])
@pytest.mark.parametrize("name", ["wanda", "layer-drop"])
def test_every_encoder(tmp_path, labels, name):
    tmp_path.mkdir(exist_ok=True)
    tiny_bert(tmp_path / "model", labels=labels, layers=4)
    target = {"layers": 1} if name == "layer-drop" else {"sparsity": 0.3}
    specification = {
        "recipe": name,
        "target": target,
        "calibration": CALIBRATION,
        "evaluation": {"dataset": "dst_labelled", **QUICK} if labels else QUICK,
    }
    write_texts(tmp_path / "text.jsonl", 40)
    write_texts(tmp_path / "labelled.jsonl", 20, labels=["neg", "pos"], seed=1)
    datasets = {"dst_text": "text.jsonl", "dst_labelled": "labelled.jsonl"}
    write_job(tmp_path, "model", datasets, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    report = json.loads(outcome.report.read_text())
    metric = "accuracy" if labels else "embedding_cosine"
    assert report["quality"]["pruned"][metric] is not None
    if name == "layer-drop":
        kept = json.loads((outcome.artifact / "secateur" / "kept.json").read_text())["layers"]
        assert len(kept) == 3
        dense, tensors = _weights(tmp_path / "model"), _weights(outcome.artifact)
        start = "bert." if labels else ""
        for number, source in enumerate(kept):
            end = "intermediate.dense.weight"
            one = tensors[f"{start}encoder.layer.{number}.{end}"]
            assert torch.equal(one, dense[f"{start}encoder.layer.{source}.{end}"])


def test_a_float16_model_stays_float16(tmp_path):
    specification = {
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": CALIBRATION,
        "evaluation": QUICK,
    }
    outcome = pipeline.run(_job(tmp_path, specification, dtype="float16"), Recorder())
    assert {tensor.dtype for tensor in _weights(outcome.artifact).values()} == {torch.float16}


def test_another_dtype_is_what_is_evaluated(tmp_path):
    specification = {
        "recipe": "magnitude",
        "target": {"sparsity": 0.5},
        "calibration": CALIBRATION,
        "evaluation": QUICK,
        "output": {"dtype": "bfloat16"},
    }
    outcome = pipeline.run(_job(tmp_path, specification), Recorder())
    tensors = _weights(outcome.artifact)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    report = json.loads(outcome.report.read_text())
    assert report["verification"]["dtype"] == "bfloat16"
    assert report["verification"]["max_abs_difference"] == 0
    assert report["cost"]["ratios"]["bytes"] == pytest.approx(0.5, abs=0.02)


def test_without_any_data(tmp_path):
    specification = {"recipe": "magnitude", "target": {"sparsity": 0.25}, "evaluation": QUICK}
    outcome = pipeline.run(_job(tmp_path, specification, tokenizer=False), Recorder())
    report = json.loads(outcome.report.read_text())
    assert report["quality"]["dense"] is None
    assert report["target"]["achieved"] == 0.25


def test_ignored_weights_keep_every_bit(tmp_path):
    specification = {
        "recipe": "magnitude",
        "target": {"sparsity": 0.5},
        "structure": {"ignore": ["*.down_proj.weight", "model.layers.0.*"]},
        "evaluation": QUICK,
    }
    outcome = pipeline.run(_job(tmp_path, specification), Recorder())
    tensors, dense = _weights(outcome.artifact), _weights(tmp_path / "model")
    for name, tensor in _sites(tensors).items():
        if "down_proj" in name or ".0." in name:
            assert torch.equal(tensor, dense[name])
        else:
            assert int((tensor == 0).sum()) == tensor.numel() // 2
    with safe_open(outcome.artifact / "secateur" / "masks.safetensors", framework="pt") as stream:
        assert len(list(stream.keys())) == 2 * 6


def test_baselines_and_overlap_are_in_the_report(tmp_path):
    specification = {
        "recipe": "wanda",
        # Baselines must keep to the job's bounds, too.
        "target": {"sparsity": 0.97},
        "options": {"minimum_density": 0.01},
        "calibration": CALIBRATION,
        "evaluation": QUICK | {"baselines": ["magnitude", "random"], "dataset": "dst_other"},
    }
    tiny_llama(tmp_path / "model")
    write_texts(tmp_path / "text.jsonl", 40)
    write_texts(tmp_path / "other.jsonl", 40)
    datasets = {"dst_text": "text.jsonl", "dst_other": "other.jsonl"}
    write_job(tmp_path, "model", datasets, specification)
    recorder = Recorder()
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), recorder)
    report = json.loads(outcome.report.read_text())
    assert {entry["name"] for entry in report["baselines"]} == {"magnitude", "random"}
    assert report["data"]["overlap"]["calibration"] > 0
    assert any("too good" in message for message in recorder.messages)
    assert not (tmp_path / "work" / "scratch").exists()


def test_the_report_keeps_its_schema(tmp_path):
    from compression.report.schema import load_schema

    specification = {
        "recipe": "layer-drop",
        "target": {"sparsity": 0.34},
        "calibration": CALIBRATION,
        "evaluation": QUICK | {"baselines": ["magnitude", "random"]},
    }
    outcome = pipeline.run(_job(tmp_path, specification), Recorder())
    report = json.loads(outcome.report.read_text())
    jsonschema.validate(report, load_schema())
    assert len(report["dropped"]["gone"]) == 1
    assert len(report["baselines"]) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, bad):
    job = _job(tmp_path, {"recipe": "magnitude", "target": {"sparsity": 0.5}, "evaluation": QUICK})
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsNotFinite, match=r"model\.layers\.1\.mlp\.up_proj\.weight\[3, 5\]"):
        pipeline.run(job, Recorder())


def test_a_head_that_is_tied_in_name_only_is_refused(tmp_path):
    options = {"tied": True, "store_tied_head": True}
    job = _job(tmp_path, {"recipe": "magnitude", "target": {"sparsity": 0.5}, "evaluation": QUICK}, **options)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][7, 1] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(TensorsMismatch, match=r"row 7 of lm_head\.weight"):
        pipeline.run(job, Recorder())


def test_what_only_running_shows_is_refused_with_a_reason(tmp_path):
    from dataclasses import replace

    specification = {
        "recipe": "layer-drop",
        "target": {"layers": 2},
        "calibration": CALIBRATION,
        "evaluation": QUICK,
    }
    job = _job(tmp_path, specification, layers=4)
    tight = job.specification.model_copy(update={"options": {"keep_first": 2, "keep_last": 1}})
    with pytest.raises(TargetUnreachable, match="at most 1 can"):
        pipeline.run(replace(job, specification=tight), Recorder())
    with pytest.raises(DatasetInvalid, match="dst_text"):
        pipeline.run(replace(job, datasets={}), Recorder())


def test_same_specification_and_seed_give_the_same_bytes(tmp_path):
    specification = {
        "recipe": "random",
        "target": {"sparsity": 0.5},
        "calibration": CALIBRATION,
        "evaluation": QUICK,
    }
    artifacts = []
    for number, seed in enumerate((7, 7, 8)):
        folder = tmp_path / str(number)
        outcome = pipeline.run(_job(folder, specification | {"seed": seed}), Recorder())
        artifacts.append(hashes(outcome.artifact))
    assert artifacts[0] == artifacts[1]
    assert artifacts[0]["model.safetensors"] != artifacts[2]["model.safetensors"]


KILLS = [
    ("wanda", "mid_load", 2),
    ("wanda", "mid_block", 2),
    pytest.param("wanda", "before_checkpoint_rename", 3, marks=pytest.mark.slow),
    pytest.param("wanda", "after_checkpoint_rename", 5, marks=pytest.mark.slow),
    ("wanda", "before_checkpoint_rename", 14),
    ("wanda", "mid_export", 1),
    pytest.param("layer-drop", "after_checkpoint_rename", 2, marks=pytest.mark.slow),
    ("layer-drop", "before_checkpoint_rename", 9),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """For each recipe: the job's folder and the hashes of its artifact when nothing happens to it."""
    made = {}

    def make(recipe: str):
        if recipe not in made:
            folder = tmp_path_factory.mktemp(recipe)
            target = {"layers": 1} if recipe == "layer-drop" else {"sparsity": 0.5}
            method = "distillation" if recipe == "layer-drop" else "lora"
            specification = {
                "recipe": recipe,
                "target": target,
                "calibration": CALIBRATION,
                "recovery": {
                    "method": method,
                    "budget": {"steps": 6},
                    "options": {"save_every": 2, "evaluate_every": 3, "batch_size": 2},
                },
                "evaluation": QUICK | {"samples": 4},
            }
            outcome = pipeline.run(_job(folder, specification), Recorder())
            made[recipe] = (folder, hashes(outcome.artifact))
        return made[recipe]

    return make


@pytest.mark.parametrize(("recipe", "point", "count"), KILLS)
def test_a_job_killed_anywhere_goes_on_to_the_same_bytes(tmp_path, uninterrupted, recipe, point, count):
    folder, expected = uninterrupted(recipe)
    work = tmp_path / "work"
    assert run_and_kill(folder, work, point, count) == -signal.SIGKILL
    before = sorted(path.name for path in (work / "checkpoints").glob("*.json"))
    recorder = Recorder()
    outcome = pipeline.run(request(folder, work), recorder)
    assert hashes(outcome.artifact) == expected
    report = json.loads(outcome.report.read_text())
    assert report["reproducibility"]["resumed"] is bool(before)
    assert not {name.removesuffix(".json") for name in before} & set(recorder.steps)

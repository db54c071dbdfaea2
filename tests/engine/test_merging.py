"""Dropped layers merged into those that stay: the sums in float64, the models they make, whole jobs."""

from __future__ import annotations

import json
import random
import signal

import pytest
import torch
import transformers
from safetensors.torch import load_file

from compression import pipeline
from compression.anatomy import Inspection
from compression.criteria.layers import layer_criteria
from compression.depth import DepthEvidence, DepthTask, LayerChoice, choose_layers
from compression.evaluation import stock
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.merging import collapsed, merged_tensors
from compression.report import schema
from compression.updates.layers import layer_updates
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.resolving import attempt, faults, inspections
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_bert, tiny_llama, write_byte_tokenizer

LAYERS = 6


class Silent:
    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def log(self, message: str) -> None:
        raise AssertionError(message)


def _layer_collapse(values: list[torch.Tensor], rounds: list[list[int]]) -> dict[int, torch.Tensor]:
    """The paper's equation on numbers: places in the present list, from the last run to the first."""
    names, values = list(range(len(values))), list(values)
    for gone in rounds:
        places = sorted(names.index(layer) for layer in gone)
        while places:
            end = places.pop()
            start = end
            while places and places[-1] == start - 1:
                start = places.pop()
            base = values[start - 1].clone()
            values[start - 1] = base + sum((value - base for value in values[start : end + 1]), 0 * base)
            del values[start : end + 1], names[start : end + 1]
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_the_papers_equation(seed):
    chance = random.Random(seed)
    layers = chance.randint(3, 12)
    order = chance.sample(range(1, layers), chance.randint(1, layers - 1))
    cuts = sorted(chance.sample(range(1, len(order) + 1), chance.randint(1, len(order))))
    rounds = [order[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    generator = torch.Generator().manual_seed(seed)
    theta = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(layers)]
    found, expected = collapsed(layers, rounds), _layer_collapse(theta, rounds)
    for layer, value in expected.items():
        of = found.get(layer, {layer: 1})
        assert sum(of.values()) == 1
        total = sum((times * theta[other] for other, times in of.items()), torch.zeros(5).double())
        assert torch.allclose(total, value, atol=1e-9, rtol=0)
    assert set(found) <= set(expected)


def test_of_a_run_of_one_layer_that_layer_is_left():
    assert collapsed(5, [[2]]) == {1: {2: 1}}
    assert collapsed(5, [[2, 3]]) == {1: {1: -1, 2: 1, 3: 1}}
    assert collapsed(5, [[2, 3], [4]]) == {1: {4: 1}}
    assert collapsed(5, [[4], [2, 3]]) == {1: {1: -1, 2: 1, 4: 1}}
    assert collapsed(5, []) == {}
    with pytest.raises(ValueError, match="before layers 0 to 1"):
        collapsed(5, [[0, 1]])


def _batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(1, 257, (3, 16), generator=generator)} for _ in range(2)]


def _evidence(folder, update="merge") -> DepthEvidence:
    return DepthEvidence(StreamedModel(folder), _batches(), 6, Silent(), update=layer_updates[update])


def _merged_stock(folder, gone) -> torch.nn.Module:
    """The stock model in float64 after one round of merging."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    layers = list(model.model.layers)
    states = [layer.state_dict() for layer in layers]
    for name in states[0]:
        values = _layer_collapse([state[name].clone() for state in states], [list(gone)])
        for index, value in values.items():
            layers[index].load_state_dict({**layers[index].state_dict(), name: value})
    model.model.layers = torch.nn.ModuleList(layer for n, layer in enumerate(layers) if n not in gone)
    model.config.num_hidden_layers = len(model.model.layers)
    return model


@torch.no_grad()
def _last_states(model) -> torch.Tensor:
    """States after the last layer, before the final norm."""
    found = []
    model.model.norm.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    for batch in _batches():
        model(**batch, use_cache=False)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in found])


@pytest.mark.parametrize("gone", [(2,), (1, 2, 3), (1, 3, 4)])
def test_costs_are_those_of_the_merged_model(tmp_path, gone):
    folder = tiny_llama(tmp_path / "m", layers=LAYERS)
    changed, dense = _merged_stock(folder, gone), _merged_stock(folder, ())
    evidence = _evidence(folder)
    cosine = torch.nn.functional.cosine_similarity(_last_states(dense), _last_states(changed), dim=-1)
    found = layer_criteria["similarity"].cost(evidence, gone)
    assert found == pytest.approx(float(1 - cosine.mean()), abs=1e-6)
    losses = []
    with torch.no_grad():
        for batch in _batches():
            for row, logits in zip(batch["input_ids"], changed(**batch, use_cache=False).logits, strict=True):
                losses.append(torch.nn.functional.cross_entropy(logits[:-1], row[1:]))
    assert layer_criteria["loss"].cost(evidence, gone) == pytest.approx(
        float(torch.stack(losses).mean()), rel=1e-5
    )
    without = layer_criteria["loss"].cost(_evidence(folder, "none"), gone)
    assert without != pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_collapse_takes_the_most_similar_merge_each_time_and_goes_on_where_it_was(tmp_path):
    folder = tiny_llama(tmp_path / "m", layers=8)
    entry, known = layer_criteria["similarity"], []
    task = DepthTask(8, 5, 1, 0, 2, after_round=lambda rounds: known.append(list(rounds)))
    choice = choose_layers(task, entry, "collapse", _evidence(folder), Silent())
    assert [len(layers) for layers, _ in choice.tried] == [2, 2, 1]
    assert 0 in choice.kept
    assert choice.merged == collapsed(8, [list(layers) for layers, _ in choice.tried])
    reference = _evidence(folder)
    gone: list[int] = []
    for layers, cost in choice.tried:
        left = [layer for layer in range(1, 8) if layer not in gone]
        runs = [tuple(left[at : at + len(layers)]) for at in range(len(left) - len(layers) + 1)]
        costs = {run: entry.cost(reference, sorted([*gone, *run])) for run in runs}
        assert layers == min(runs, key=lambda run: (costs[run], run))
        assert cost == costs[layers]
        gone += layers
        reference.rounds.append(list(layers))
    assert LayerChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    again = choose_layers(
        DepthTask(8, 5, 1, 0, 2, rounds=known[0]), entry, "collapse", _evidence(folder), Silent()
    )
    assert again == choice


def test_tensors_are_rounded_once_from_float64(tmp_path):
    folder = tiny_bert(tmp_path / "m", labels=["a", "b"], layers=4)
    model = StreamedModel(folder)
    stored = load_file(folder / "model.safetensors")
    found = merged_tensors(model, 0, {0: -1, 1: 1, 2: 1})
    assert set(found) == set(model.block_names(0).values())
    for name, value in found.items():
        parts = [stored[name.replace("layer.0.", f"layer.{n}.")].double() for n in range(3)]
        assert torch.equal(value, (parts[1] + parts[2] - parts[0]).to(value.dtype))


def _job(folder, recipe, **changes):
    tiny_llama(folder / "model", layers=LAYERS)
    write_texts(folder / "text.jsonl", 40)
    calibration = {"dataset": "dst_text", "samples": 6, "sequence_length": 32}
    specification = {
        "recipe": recipe,
        "target": {"layers": 3},
        "calibration": calibration,
        "evaluation": {"measure": [], "samples": 4},
        **changes,
    }
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("laco", {"collapse_layers": 2}), ("layer-drop", {"update": "merge"}), ("sleb", {"update": "merge"})],
)
def test_merged_models_are_stock_checkpoints(tmp_path, recipe, options):
    outcome = pipeline.run(_job(tmp_path, recipe, options=options), Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    dropped = report["dropped"]
    assert (len(dropped["gone"]), dropped["update"]) == (3, "merge")
    assert dropped["merged"]
    assert all(one["layer"] >= 1 for one in dropped["merged"])
    rounds = [one["layers"] for one in dropped["tried"]] if recipe == "laco" else [sorted(dropped["gone"])]
    dense, tensors = load_file(tmp_path / "model/model.safetensors"), {}
    for path in outcome.artifact.glob("*.safetensors"):
        tensors |= load_file(path)
    for name, value in tensors.items():
        if not name.startswith("model.layers."):
            assert torch.equal(value, dense[name])
            continue
        _, _, place, rest = name.split(".", 3)
        theta = [dense[f"model.layers.{n}.{rest}"].double() for n in range(LAYERS)]
        wanted = _layer_collapse(theta, [list(one) for one in rounds])[dropped["kept"][int(place)]]
        assert torch.allclose(value.double(), wanted, atol=1e-6)
    model = stock.load(outcome.artifact, "text-generation")
    assert model.config.num_hidden_layers == 3
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert "merged into" in outcome.report_html.read_text()


@pytest.mark.parametrize("count", [3, 7])
def test_a_collapse_that_was_killed_ends_with_the_same_bytes(tmp_path, count):
    asked = _job(tmp_path, "laco", options={"collapse_layers": 2})
    expected = hashes(pipeline.run(asked, Recorder()).artifact)
    work = tmp_path / "again"
    assert run_and_kill(tmp_path, work, "before_checkpoint_rename", count) == -signal.SIGKILL
    assert hashes(pipeline.run(request(tmp_path, work), Recorder()).artifact) == expected


def test_layers_stay_to_be_merged_into(tmp_path):
    model = inspections(tmp_path)["decoder"]
    ends = [
        (found.options["keep_first"], found.options["keep_last"])
        for found in (attempt(model, recipe="laco", target={"layers": count}) for count in (3, 4, 5))
    ]
    assert ends == [(1, 1), (1, 0), (0, 0)]
    (fault,) = faults(
        model, recipe="layer-drop", target={"layers": 5}, options={"update": "merge", "keep_first": 1}
    )
    assert fault.pointer == "/target/layers"
    assert "one stays that they are merged into; a target of 5 asks for 5" in fault.message
    assert "Reachable: 1 to 4." in fault.message


def test_layers_with_experts_are_not_merged(tmp_path):
    folder = tiny_family(tmp_path, "MixtralForCausalLM", vocab_size=264)
    write_byte_tokenizer(folder, bert=False, context=60)
    model = Inspection.from_json(admit_model(folder_sources(folder)).inspection)
    (fault,) = faults(model, recipe="laco", target={"layers": 1})
    assert fault.pointer == "/options/update"
    assert "write 'none'" in fault.message

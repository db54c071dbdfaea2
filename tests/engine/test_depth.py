"""Which layers go: costs against the stock model in float64, every way of choosing, rounds that go on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from compression.anatomy import inspect
from compression.criteria.base import ActivationsNotFinite
from compression.criteria.layers import layer_criteria
from compression.depth import (
    DepthEvidence,
    DepthTask,
    LayerChoice,
    baseline_layers,
    boundary_states,
    choose_layers,
)
from compression.errors import TargetUnreachable
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.recipes import recipes
from tests.tiny_models import tiny_bert, tiny_llama


class Silent:
    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def log(self, message: str) -> None:
        raise AssertionError(message)


LAYERS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(root / "llama", layers=LAYERS),
        "bert": tiny_bert(root / "bert", labels=["a", "b", "c"], layers=LAYERS),
        "headless": tiny_bert(root / "headless", layers=LAYERS),
    }


def _batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(1, 257, (3, 16), generator=generator)} for _ in range(2)]


def _evidence(folder, sequences: int = 6) -> DepthEvidence:
    return DepthEvidence(StreamedModel(folder), _batches(), sequences, Silent())


def _without(folder, kind: str, gone) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Answers and all hidden states (the last before the final norm is not among them) of the stock model in
    float64 without some layers."""
    name = {"llama": "AutoModelForCausalLM", "bert": "AutoModelForSequenceClassification"}.get(
        kind, "AutoModel"
    )
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float64).eval()
    base = {"llama": "model", "bert": "bert.encoder"}.get(kind, "encoder")
    attribute = "layers" if kind == "llama" else "layer"
    parent = model.get_submodule(base)
    layers = getattr(parent, attribute)
    setattr(parent, attribute, torch.nn.ModuleList(x for n, x in enumerate(layers) if n not in gone))
    if kind == "llama":
        model.config.num_hidden_layers = len(layers) - len(gone)
    answers, inputs = [], []
    with torch.no_grad():
        for batch in _batches():
            taken = []
            handles = [
                layer.register_forward_pre_hook(lambda module, args, taken=taken: taken.append(args[0]))
                for layer in getattr(parent, attribute)
            ]
            output = model(**batch, **({"use_cache": False} if kind == "llama" else {}))
            answers.append(output.last_hidden_state if kind == "headless" else output.logits)
            inputs.append(taken)
            for handle in handles:
                handle.remove()
    return answers, [torch.cat([part[n].flatten(0, 1) for part in inputs]) for n in range(len(inputs[0]))]


def _loss(answers, kind: str) -> float:
    losses = []
    for logits, batch in zip(answers, _batches(), strict=True):
        for row in range(3):
            if kind == "llama":
                losses.append(functional.cross_entropy(logits[row, :-1], batch["input_ids"][row, 1:]))
            else:
                # Without labels a classifier is judged by what it itself says.
                losses.append(functional.cross_entropy(logits[row], logits[row].argmax()))
    return float(torch.stack(losses).mean())


def _divergence(answers, kind: str, dense) -> float:
    found = []
    for changed, before in zip(answers, dense, strict=True):
        if kind == "headless":
            found.append(1 - functional.cosine_similarity(before, changed, dim=-1).flatten())
        else:
            p, q = before.log_softmax(-1), changed.log_softmax(-1)
            found.append((p.exp() * (p - q)).sum(-1).flatten())
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("kind", ["llama", "bert", "headless"])
@pytest.mark.parametrize("gone", [(1,), (1, 2), (1, 3)])
def test_costs_are_those_of_the_stock_model_in_float64(folders, kind, gone):
    folder = folders[kind]
    dense, states = _without(folder, kind, ())
    changed, _ = _without(folder, kind, gone)
    evidence = _evidence(folder)
    assert layer_criteria["divergence"].cost(evidence, gone) == pytest.approx(
        _divergence(changed, kind, dense), rel=1e-3, abs=1e-7
    )
    if kind != "headless":
        assert layer_criteria["loss"].cost(evidence, gone) == pytest.approx(_loss(changed, kind), rel=1e-5)
    ends = [(1, 3)] if gone == (1, 2) else [(layer, layer + 1) for layer in gone]
    cosines = [functional.cosine_similarity(states[a], states[b], dim=-1) for a, b in ends]
    influence = sum(float(1 - cosine.mean()) for cosine in cosines)
    angles = sum(float(torch.acos(cosine.clamp(-1, 1)).mean()) / math.pi for cosine in cosines)
    assert layer_criteria["block-influence"].cost(evidence, gone) == pytest.approx(influence, abs=1e-6)
    assert layer_criteria["angular"].cost(evidence, gone) == pytest.approx(angles, abs=1e-5)


@pytest.mark.parametrize("criterion", layer_criteria.names())
def test_a_run_is_the_cheapest_of_all_runs(folders, criterion):
    evidence, entry = _evidence(folders["llama"]), layer_criteria[criterion]
    choice = choose_layers(DepthTask(LAYERS, 2, 1, 1), entry, "run", evidence, Silent())
    costs = {start: entry.cost(evidence, (start, start + 1)) for start in (1, 2)}
    best = min(costs, key=lambda start: costs[start])
    assert choice.gone == (best, best + 1)
    assert choice.kept == tuple(layer for layer in range(LAYERS) if layer not in choice.gone)
    assert dict(choice.tried) == {(start, start + 1): cost for start, cost in costs.items()}
    assert (choice.tokens > 0) == (criterion in ("angular", "block-influence"))


@pytest.mark.parametrize("criterion", layer_criteria.names())
def test_separate_layers_are_the_cheapest_alone(folders, criterion):
    evidence, entry = _evidence(folders["llama"]), layer_criteria[criterion]
    choice = choose_layers(DepthTask(LAYERS, 2, 1, 0), entry, "separate", evidence, Silent())
    costs = {layer: entry.cost(evidence, (layer,)) for layer in range(1, LAYERS)}
    assert set(choice.gone) == set(sorted(costs, key=lambda layer: costs[layer])[:2])
    assert 0 in choice.kept


@pytest.mark.parametrize("criterion", ["loss", "divergence"])
def test_greedy_takes_the_cheapest_each_time(folders, criterion):
    evidence, entry = _evidence(folders["bert"]), layer_criteria[criterion]
    choice = choose_layers(DepthTask(LAYERS, 3), entry, "greedy", evidence, Silent())
    gone: list[int] = []
    for layers, cost in choice.tried:
        options = {
            layer: entry.cost(evidence, sorted([*gone, layer]))
            for layer in range(LAYERS)
            if layer not in gone
        }
        best = min(options, key=lambda layer: options[layer])
        assert (layers, cost) == ((best,), options[best])
        gone.append(best)
    assert choice.gone == tuple(gone)
    assert LayerChoice.from_json(choice.to_json()) == choice


def test_greedy_goes_on_where_it_was(folders):
    entry = layer_criteria["loss"]
    known: list[list[tuple[list[int], float]]] = []
    task = DepthTask(LAYERS, 3, after_round=lambda rounds: known.append(list(rounds)))
    whole = choose_layers(task, entry, "greedy", _evidence(folders["llama"]), Silent())
    assert [len(rounds) for rounds in known] == [1, 2, 3]
    again = choose_layers(
        DepthTask(LAYERS, 3, rounds=known[1]), entry, "greedy", _evidence(folders["llama"]), Silent()
    )
    assert again == whole


def test_loss_of_greedy_is_no_higher_than_of_the_run_in_the_first_round(folders):
    evidence = _evidence(folders["llama"])
    single = [layer_criteria["loss"].cost(evidence, (layer,)) for layer in range(LAYERS)]
    choice = choose_layers(DepthTask(LAYERS, 1), layer_criteria["loss"], "greedy", evidence, Silent())
    assert choice.tried[0][1] == min(single)


@pytest.mark.parametrize("selection", ["run", "separate", "greedy"])
def test_too_few_layers_that_may_go(folders, selection):
    task = DepthTask(LAYERS, 4, 1, 1)
    with pytest.raises(TargetUnreachable, match="at most 3 can"):
        choose_layers(task, layer_criteria["angular"], selection, _evidence(folders["llama"]), Silent())


def test_recipes_of_layers_are_their_own_compositions():
    found = {
        name: (recipes[name].options().criterion, recipes[name].options().selection)
        for name in ("layer-drop", "minitron-depth", "shortgpt", "sleb")
    }
    assert found == {
        "layer-drop": ("angular", "run"),
        "minitron-depth": ("loss", "run"),
        "shortgpt": ("block-influence", "separate"),
        "sleb": ("loss", "greedy"),
    }


def test_boundaries_are_the_stock_models_hidden_states(folders):
    batches = _batches()
    found = boundary_states(StreamedModel(folders["llama"]), batches, Silent(), limit=10**6)
    assert len(found) == LAYERS + 1
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for batch in batches]
    for index in range(LAYERS):  # the stock model's last hidden state is after the final norm
        expected = torch.cat([part[index].reshape(-1, 32) for part in states])
        assert torch.equal(found[index], expected)


def test_layers_of_baselines(folders):
    folder = folders["llama"]
    model, reader = StreamedModel(folder), WeightReader(folder)
    sites = list(inspect(read_config(folder), reader.names()).sites)
    kept = {baseline_layers("random", model, sites, 2, (1, 1), seed) for seed in range(20)}
    assert kept == {(0, 3, 4), (0, 1, 4)}
    norms = [0.0] * LAYERS
    for site in sites:
        norms[site.layer] += float(reader.tensor(site.name).double().square().sum())
    sums = {a: norms[a] + norms[b] for a, b in itertools.pairwise((1, 2, 3))}
    start = min(sums, key=lambda layer: sums[layer])
    expected = tuple(layer for layer in range(LAYERS) if layer not in (start, start + 1))
    assert baseline_layers("magnitude", model, sites, 2, (1, 1), 0) == expected


@pytest.mark.parametrize("criterion", layer_criteria.names())
def test_a_model_that_overflows_is_named(tmp_path, criterion):
    folder = tiny_llama(tmp_path / "m", layers=3)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(3e38)
    tensors["model.layers.2.mlp.up_proj.weight"].fill_(3e38)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ActivationsNotFinite, match="not finite on the calibration data"):
        choose_layers(DepthTask(3, 1), layer_criteria[criterion], "separate", _evidence(folder), Silent())


def test_what_overflows_without_a_layer_is_the_dearest(folders):
    class Bad:
        name = "bad"
        summary = paper = ""
        needs = frozenset()

        def cost(self, evidence, gone):
            return float("nan") if 1 in gone else 1.0 + gone[0]

    choice = choose_layers(DepthTask(LAYERS, 2), Bad(), "separate", _evidence(folders["llama"]), Silent())
    assert set(choice.gone) == {0, 2}

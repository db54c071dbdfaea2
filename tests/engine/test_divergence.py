"""Divergence and loss of changed models against the stock model, and what evidence makes of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression import divergence as module
from compression.anatomy import inspect
from compression.checkpoint import Store
from compression.cutting import PruneSettings
from compression.densities import site_bounds
from compression.divergence import Judge, changed_block
from compression.evidence import Curves, ModelEvidence, curve_key
from compression.gradients import GradientFiles, Measured
from compression.granularity.base import Pattern, parse_granularity
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.seeds import site_generator
from tests.tiny_models import tiny_bert, tiny_llama

KINDS = {
    "llama": "AutoModelForCausalLM",
    "bert": "AutoModelForSequenceClassification",
    "headless": "AutoModel",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(root / "llama", layers=3),
        "bert": tiny_bert(root / "bert", labels=["a", "b", "c"], layers=3),
        "headless": tiny_bert(root / "headless", layers=3),
    }


def _sites(folder):
    return list(inspect(read_config(folder), WeightReader(folder).names()).sites)


def _batches(padded: bool = True) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(1, 257, (3, 16), generator=generator)} for _ in range(2)]
    for batch in batches if padded else []:
        mask = torch.ones(3, 16, dtype=torch.int64)
        mask[1, 9:] = 0
        batch["attention_mask"] = mask
    return batches


def _changes(folder, layers: tuple[int, ...], size: float = 0.05) -> dict[int, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    reader = WeightReader(folder)
    changes: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for site in _sites(folder):
        noise = torch.randn(site.shape, generator=generator)
        if site.layer in layers and site.kind != "value":
            changes[site.layer][site.name] = reader.tensor(site.name) + size * noise
    return changes


def _stock(folder, kind: str, changes: dict[int, dict[str, Tensor]]):
    import transformers

    model = getattr(transformers, KINDS[kind]).from_pretrained(folder, dtype=torch.float64).eval()
    for tensors in changes.values():
        for name, value in tensors.items():
            model.get_parameter(name).data = value.double()
    return model


def _sequences(padded: bool = True) -> list[Tensor]:
    return [
        batch["input_ids"][row : row + 1, : 9 if padded and row == 1 else 16]
        for batch in _batches(padded)
        for row in range(3)
    ]


def _naive(folder, kind: str, changes, limit: int) -> float:
    """One position after another, in float64."""
    dense, changed = _stock(folder, kind, {}), _stock(folder, kind, changes)
    values = []
    for tokens in _sequences()[:limit]:
        with torch.no_grad():
            first, second = dense(input_ids=tokens), changed(input_ids=tokens)
        name = "last_hidden_state" if kind == "headless" else "logits"
        rows = zip(first[name].reshape(-1, first[name].shape[-1]),
                   second[name].reshape(-1, first[name].shape[-1]), strict=True)  # fmt: skip
        for one, other in rows:
            if kind == "headless":
                values.append(1 - float(one @ other / one.norm() / other.norm()))
            else:
                p, q = one.softmax(-1), other.softmax(-1)
                values.append(
                    sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
                )
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("layers", [(0,), (2,), (0, 1, 2)])
def test_divergence_is_the_naive_one_of_stock_models(folders, kind, layers):
    changes = _changes(folders[kind], layers)
    found = Judge(StreamedModel(folders[kind]), _batches(), 4).divergence(changes)
    assert found == pytest.approx(_naive(folders[kind], kind, changes, 4), rel=2e-3)
    assert found > 1e-5


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_change_is_no_divergence(folders, kind):
    folder = folders[kind]
    judge = Judge(StreamedModel(folder), _batches(), 6)
    assert judge.divergence({}) == pytest.approx(0.0, abs=1e-7)
    same = {
        1: {site.name: WeightReader(folder).tensor(site.name) for site in _sites(folder) if site.layer == 1}
    }
    assert judge.divergence(same) == pytest.approx(0.0, abs=1e-7)
    assert judge.divergence({0: {}}) == pytest.approx(0.0, abs=1e-7)


def test_what_overflows_is_infinitely_far(folders):
    """A NaN must not pass for no divergence at all."""
    folder = folders["llama"]
    name = "model.layers.1.mlp.up_proj.weight"
    weight = torch.full_like(WeightReader(folder).tensor(name), 3e38)
    judge = Judge(StreamedModel(folder), _batches(), 2)
    assert judge.divergence({1: {name: weight}}) == math.inf


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("layers", [(), (1,), (0, 2)])
def test_loss_is_that_of_the_stock_model(folders, kind, layers):
    changes = _changes(folders[kind], layers)
    stock = _stock(folders[kind], kind, changes)
    losses = []
    for tokens in _sequences()[:5]:
        with torch.no_grad():
            if kind == "llama":
                losses.append(float(stock(input_ids=tokens, labels=tokens).loss))
            else:
                losses.append(-float(stock(input_ids=tokens).logits.log_softmax(-1).max()))
    found = Judge(StreamedModel(folders[kind]), _batches(), 5).loss(changes)
    assert found == pytest.approx(sum(losses) / 5, rel=1e-5)


@pytest.mark.parametrize("held", [0, 20_000, 1 << 30])
def test_neither_order_nor_room_changes_anything(folders, monkeypatch, held):
    folder = folders["llama"]
    asked = [(2,), (0, 1), (), (1,), (0,), (1, 2), (2,)]
    fresh = [
        Judge(StreamedModel(folder), _batches(), 4).divergence(_changes(folder, layers)) for layers in asked
    ]
    monkeypatch.setattr(module, "HELD_BYTES", held)
    for order in (asked, asked[::-1]):
        judge = Judge(StreamedModel(folder), _batches(), 4)
        found = {layers: judge.divergence(_changes(folder, layers)) for layers in order}
        assert [found[layers] for layers in asked] == fresh
    assert judge.loss({}) == Judge(StreamedModel(folder), _batches(), 4).loss({})


def test_changes_are_laid_over_a_block_and_taken_off_again(folders):
    folder = folders["llama"]
    block = StreamedModel(folder).load_block(1)
    changes = _changes(folder, (1,))[1]
    before = {name: block.parameter(name).data.clone() for name in changes}
    with pytest.raises(RuntimeError, match="within"), changed_block(block, changes):
        assert all(torch.equal(block.parameter(name).data, value) for name, value in changes.items())
        raise RuntimeError("within")
    assert all(torch.equal(block.parameter(name).data, value) for name, value in before.items())


# -- evidence


def _settings(criterion="wanda", granularity="unstructured", **options) -> PruneSettings:
    return PruneSettings(criterion, parse_granularity(granularity), 0, **options)


def _evidence(folder, root, settings, curves=None, gradients=None, batches=None) -> ModelEvidence:
    nothing = GradientFiles(Store(root / "steps", "k"), ())
    return ModelEvidence(
        lambda: StreamedModel(folder),
        _sites(folder),
        settings,
        _batches() if batches is None else batches,
        Measured(gradients or nothing, nothing),
        root / "scratch",
        curves or Curves(None, ""),
        lambda done, total: None,
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_divergence_of_pruned_layers_is_that_of_the_stock_model_so_pruned(folders, tmp_path, kind):
    folder = folders[kind]
    evidence = _evidence(folder, tmp_path, _settings("magnitude", comparison="layer"))
    sparsities = {0: 0.25, 2: 0.75, 1: 0.0}
    changes: dict[int, dict[str, Tensor]] = {}
    for site in _sites(folder):
        weight = WeightReader(folder).tensor(site.name)
        edge = weight.abs().flatten().sort().values[int(sparsities[site.layer] * site.size)]
        changes.setdefault(site.layer, {})[site.name] = weight * (weight.abs() >= edge)
    found = evidence.divergence(sparsities, 5)
    assert found == pytest.approx(_naive(folder, kind, changes, 5), rel=2e-3)
    assert evidence.divergence(sparsities, 5) == found


def test_influence_is_what_every_layer_does_to_the_hidden_states(folders, tmp_path):
    folder = folders["bert"]
    found = _evidence(folder, tmp_path, _settings()).influence()
    stock = _stock(folder, "bert", {})
    cosines: list[list[float]] = [[], [], []]
    for tokens in _sequences():
        with torch.no_grad():
            states = stock(input_ids=tokens, output_hidden_states=True).hidden_states
        for layer in range(3):
            for one, other in zip(states[layer][0], states[layer + 1][0], strict=True):
                cosines[layer].append(float(one @ other / one.norm() / other.norm()))
    assert found == pytest.approx([1 - sum(values) / len(values) for values in cosines], rel=1e-4)


def test_slopes_are_those_of_the_stock_model(folders, tmp_path):
    folder = folders["llama"]
    evidence = _evidence(folder, tmp_path, _settings(seed=4))
    stock = _stock(folder, "llama", {})
    sum(stock(input_ids=tokens, labels=tokens).loss for tokens in _sequences()[:3]).backward()
    for layer, direction in ((0, 0), (2, 1)):
        expected = 0.0
        for site in (site for site in _sites(folder) if site.layer == layer):
            weight = stock.get_parameter(site.name)
            generator = site_generator(4, f"direction {direction} {site.name}")
            noise = torch.randn(site.shape, generator=generator)
            expected += float((weight.grad / 3 * noise).sum() * weight.detach().square().mean().sqrt())
        assert evidence.slope(layer, direction, 3) == pytest.approx(expected, rel=0.02, abs=2e-4)


def test_scores_and_units_of_blocks(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][:8] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    evidence = _evidence(folder, tmp_path, _settings("random", "4x8"))
    assert evidence.units(name) == 64 * 32 // 32
    assert evidence.bounds[name] == site_bounds(64, 0.05, 1.0)
    found = dict(evidence.scores())
    assert found[name].shape == (16, 4)
    # What is zero already counts nothing, as in the mask.
    assert not bool(found[name][:2].any())
    assert bool((found[name][2:] > 0).all())
    single = _evidence(folder, tmp_path, _settings("random"))
    assert bool((dict(single.scores())[name][:8] == -1).all())


def test_what_an_earlier_run_left_in_scratch_is_not_read(folders, tmp_path):
    folder, settings = folders["llama"], _settings("magnitude")
    first = _evidence(folder, tmp_path, settings).divergence({1: 0.5}, 4)
    variant = next((tmp_path / "scratch").glob("variant-*"))
    stale = _evidence(folder, tmp_path, _settings("random"))
    assert not variant.exists()
    assert stale.divergence({1: 0.5}, 4) != first
    assert _evidence(folder, tmp_path, settings).divergence({1: 0.5}, 4) == first


def test_divergences_see_the_updates(folders, tmp_path):
    sparsities = {0: 0.6, 1: 0.6, 2: 0.6}
    found = {}
    for update in ((), ("bias-compensation",), ("sparsegpt",), ("sparsegpt", "bias-compensation")):
        settings = _settings(update=update)
        root = tmp_path / "-".join(update)
        found[update] = _evidence(folders["bert"], root, settings).divergence(sparsities, 6)
    assert len(set(found.values())) == 4
    assert 0 < found["bias-compensation",] < found[()]


# -- curves


def test_curves_outlive_the_job_and_are_not_measured_again(folders, tmp_path, monkeypatch):
    folder, settings = folders["llama"], _settings()
    first = _evidence(folder, tmp_path, settings, Curves(tmp_path / "cache", "k")).divergence({1: 0.5}, 2)

    def refuse(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(Judge, "divergence", refuse)
    again = _evidence(folder, tmp_path, settings, Curves(tmp_path / "cache", "k"))
    assert again.divergence({1: 0.5}, 2) == first
    for sparsities, sequences, key in (({1: 0.5}, 3, "k"), ({1: 0.51}, 2, "k"), ({1: 0.5}, 2, "other")):
        other = _evidence(folder, tmp_path, settings, Curves(tmp_path / "cache", key))
        with pytest.raises(AssertionError, match="measured again"):
            other.divergence(sparsities, sequences)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["divergences-k.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": null}', '{"a": "x"}'])
def test_a_spoilt_file_of_curves_counts_as_none(tmp_path, content):
    (tmp_path / "divergences-k.json").write_text(content)
    curves = Curves(tmp_path, "k")
    assert curves.get("a") is None
    curves.put("a", 0.1)
    assert json.loads((tmp_path / "divergences-k.json").read_text()) == {"a": 0.1}
    assert Curves(tmp_path, "k").get("a") == 0.1


def test_the_key_of_curves_is_of_all_that_they_depend_on():
    base = {"criterion": "wanda", "pattern": Pattern("unstructured"), "remove_total": 5}
    changes = [
        {"criterion": "ria"}, {"pattern": Pattern("block", shape=(2, 4))}, {"comparison": "layer"},
        {"minimum_density": 0.2}, {"maximum_density": 0.9}, {"update": ("sparsegpt",)},
        {"update": ("dsnot", "sparsegpt")}, {"token_weight": "norm"}, {"gradient": "zeroth-order"},
        {"gradient_sequences": 3}, {"gradient_directions": 3}, {"seed": 1},
        {"parameters": {"ria_power": 1.0}},
    ]  # fmt: skip
    keys = {curve_key(PruneSettings(**{**base, **change}), "m", "c") for change in ({}, *changes)}
    keys |= {curve_key(PruneSettings(**base), "n", "c"), curve_key(PruneSettings(**base), "m", "d")}
    assert len(keys) == len(changes) + 3
    same = PruneSettings(**{**base, "remove_total": 9, "allocation": "evolution"})
    assert curve_key(same, "m", "c") in keys

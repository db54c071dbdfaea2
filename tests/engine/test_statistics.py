"""What calibration measures, and what tokens weigh, against the stock model in float64."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from compression.anatomy import inspect
from compression.criteria.base import NEEDS
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.statistics import Collector, sample_positions
from compression.token_weights import LOWEST, AttentionHidden, received_attention, token_weights
from tests.tiny_models import tiny_bert, tiny_llama

CASES = [("llama", False), ("llama", True), ("bert", False), ("bert", True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"llama": tiny_llama(root / "llama"), "bert": tiny_bert(root / "bert", labels=["a", "b"])}


def _batches(padded: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(1, 257, (3, 14), generator=generator)} for _ in range(2)]
    for number, batch in enumerate(batches if padded else []):
        mask = torch.ones(3, 14, dtype=torch.int64)
        mask[1, 9 - number :] = 0
        mask[2, 2:] = 0
        batch["attention_mask"] = mask
    return batches


def _real(batch: dict[str, Tensor]) -> Tensor:
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()


def _stock(folder, kind: str):
    name = "AutoModelForCausalLM" if kind == "llama" else "AutoModelForSequenceClassification"
    loaded = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    return loaded.eval()


def _layer_sites(folder, layer: int) -> list[str]:
    sites = inspect(read_config(folder), WeightReader(folder).names()).sites
    return [site.name for site in sites if site.layer == layer]


def _stock_inputs(folder, kind: str, batches, names: list[str]) -> dict[str, list[Tensor]]:
    """Inputs of linear layers at the real tokens of each batch, float64 [tokens, in]."""
    stock = _stock(folder, kind)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in batches:
        handles = [
            stock.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                lambda module, args, name=name, batch=batch: found[name].append(args[0][_real(batch)])
            )
            for name in names
        ]
        with torch.no_grad():
            stock(**batch)
        for handle in handles:
            handle.remove()
    return found


def _collect(folder, batches, layer: int, needs: frozenset[str], weights=None, limit: int = 10):
    model = StreamedModel(folder)
    states = model.start(batches)
    for index in range(layer):
        model.run_block(model.load_block(index), states)
    block = model.load_block(layer)
    positions = sample_positions(states, limit)
    with Collector(block, _layer_sites(folder, layer), states, positions, needs) as collector:
        for number in range(len(states)):
            collector.batch(number, None if weights is None else weights[number])
            model.run_batch(block, states, number)
    assert not any(module._forward_pre_hooks for module in block.module.modules())
    return collector, positions


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_norms_means_and_hessians_are_those_of_a_loop(folders, kind, padded, weighted):
    folder, batches = folders[kind], _batches(padded)
    names = _layer_sites(folder, 1)
    weights = None
    if weighted:
        generator = torch.Generator().manual_seed(2)
        weights = [torch.rand(int(_real(batch).sum()), generator=generator) for batch in batches]
        weights = [values / values.square().mean().sqrt() for values in weights]
    collector, _ = _collect(folder, batches, 1, frozenset({"means", "hessian"}), weights)
    plain, _ = _collect(folder, batches, 1, frozenset(), weights)
    inputs = _stock_inputs(folder, kind, batches, names)
    for name in names:
        width = inputs[name][0].shape[1]
        hessian, total = (
            torch.zeros(width, width, dtype=torch.float64),
            torch.zeros(width, dtype=torch.float64),
        )
        count = 0
        for number, rows in enumerate(inputs[name]):
            for place, x in enumerate(rows):
                factor = 1.0 if weights is None else float(weights[number][place]) ** 2
                hessian += factor * torch.outer(x, x)
                total += factor * x
                count += 1
        found = collector.statistics(name)
        edge = float(hessian.abs().max())
        assert found.tokens == count == sum(int(_real(batch).sum()) for batch in batches)
        assert {found.need(need).dtype for need in NEEDS[:3]} == {torch.float32}
        torch.testing.assert_close(found.need("hessian").double(), hessian, rtol=1e-5, atol=1e-6 * edge)
        torch.testing.assert_close(found.need("means").double(), total / count, rtol=1e-5, atol=1e-6)
        norms = hessian.diagonal().sqrt()
        torch.testing.assert_close(found.column_norms.double(), norms, rtol=1e-5, atol=1e-6)
        bare = plain.statistics(name)
        torch.testing.assert_close(bare.column_norms.double(), norms, rtol=1e-5, atol=1e-6)
        assert bare.means is None
        assert bare.hessian is None


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_weights_with_one_input_share_what_is_known_of_it(folders, kind):
    collector, _ = _collect(folders[kind], _batches(True), 0, frozenset({"hessian"}))
    names = _layer_sites(folders[kind], 0)
    shared: dict[int, list[str]] = {}
    for name in names:
        statistics = collector.statistics(name)
        shared.setdefault(statistics.need("hessian").data_ptr(), []).append(name.split(".")[-2])
    groups = sorted(sorted(group) for group in shared.values())
    if kind == "llama":
        assert groups == [["down_proj"], ["gate_proj", "up_proj"], ["k_proj", "q_proj", "v_proj"], ["o_proj"]]
    else:
        assert groups == [["dense"], ["dense"], ["dense"], ["key", "query", "value"]]
    alike = next(group for group in shared.values() if len(group) > 1)
    mates = [name for name in names if name.split(".")[-2] in alike]
    for name in mates[:-1]:
        collector.forget(name)
        assert torch.isfinite(collector.statistics(mates[-1]).column_norms).all()
    collector.forget(mates[-1])
    with pytest.raises(KeyError):
        collector.statistics(mates[-1])


@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_samples_are_inputs_of_the_sampled_tokens(folders, kind, padded):
    folder, batches = folders[kind], _batches(padded)
    names = _layer_sites(folder, 0)
    collector, positions = _collect(folder, batches, 0, frozenset())
    inputs = _stock_inputs(folder, kind, batches, names)
    for name in names:
        expected = []
        for batch, places, rows in zip(batches, positions, inputs[name], strict=True):
            order = _real(batch).flatten().cumsum(0) - 1
            expected += [rows[int(order[place])] for place in places]
        sample = collector.sample(name)
        assert sample.shape[0] == 10
        torch.testing.assert_close(sample.double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert collector.sample(name) is sample


def test_a_long_batch_gives_what_short_ones_give(folders):
    """4480 tokens at once, more than are summed at once in float32, and in seven batches."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 257, (70, 64), generator=generator)
    weights = torch.rand(70, 64, generator=generator)
    needs = frozenset({"means", "hessian"})
    names = _layer_sites(folders["bert"], 0)
    whole, _ = _collect(folders["bert"], [{"input_ids": tokens}], 0, needs, [weights.flatten()])
    parts, _ = _collect(
        folders["bert"],
        [{"input_ids": part} for part in tokens.split(10)],
        0,
        needs,
        [part.flatten() for part in weights.split(10)],
    )
    for name in names:
        for need in NEEDS[:3]:
            first, second = (collector.statistics(name).need(need) for collector in (whole, parts))
            edge = float(first.abs().max())
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5 * edge)


# -- token weights


def _scaled(values: Tensor, real: Tensor) -> Tensor:
    """What `token_weights` promises, one sequence after another, in float64."""
    parts = []
    for row, mask in zip(values.double(), real, strict=True):
        kept = row[mask]
        low, high = kept.min(), kept.max()
        spread = high - low if high > low else torch.ones((), dtype=torch.float64)
        parts.append(LOWEST + (1 - LOWEST) * (kept - low) / spread)
    weights = torch.cat(parts)
    return weights / weights.square().mean().sqrt()


@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_attention_is_what_the_stock_model_gives_each_token(folders, kind, padded):
    folder, batches = folders[kind], _batches(padded)
    stock = _stock(folder, kind)
    model = StreamedModel(folder)
    states = model.start(batches)
    for index in range(model.layers):
        block = model.load_block(index)
        for number, batch in enumerate(batches):
            real = _real(batch)
            with torch.no_grad():
                attention = stock(**batch, output_attentions=True).attentions[index]
            expected = torch.zeros(3, 14, dtype=torch.float64)
            for row in range(3):
                for query in real[row].nonzero().flatten():
                    expected[row] += attention[row, :, query].sum(0)
            assert float(expected.sum()) == pytest.approx(4 * int(real.sum()))
            found = received_attention(model, block, states, number)
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
            weights = token_weights("attention", model, block, states, number)
            torch.testing.assert_close(weights.double(), _scaled(expected, real), rtol=1e-3, atol=1e-4)
        model.run_block(block, states)


@pytest.mark.parametrize(("kind", "padded"), CASES)
def test_norms_of_hidden_states_weigh_tokens(folders, kind, padded):
    folder, batches = folders[kind], _batches(padded)
    stock = _stock(folder, kind)
    model = StreamedModel(folder)
    states = model.start(batches)
    for index in range(model.layers):
        block = model.load_block(index)
        for number, batch in enumerate(batches):
            with torch.no_grad():
                hidden = stock(**batch, output_hidden_states=True).hidden_states[index]
            weights = token_weights("norm", model, block, states, number)
            assert weights.dtype == torch.float32
            torch.testing.assert_close(
                weights.double(), _scaled(hidden.norm(dim=-1), _real(batch)), rtol=2e-3, atol=1e-4
            )
        model.run_block(block, states)


@pytest.mark.parametrize("kind", ["attention", "norm"])
@pytest.mark.parametrize("padded", [False, True])
def test_weights_have_mean_square_one_and_leave_the_model_as_it_was(folders, kind, padded):
    model = StreamedModel(folders["llama"])
    states = model.start(_batches(padded))
    block = model.load_block(0)
    before = model.run_batch(block, states, 0)
    weights = token_weights(kind, model, block, states, 0)
    assert weights.shape == (states.tokens(0),)
    assert float(weights.square().mean()) == pytest.approx(1.0, rel=1e-5)
    assert float(weights.min()) > 0
    assert torch.equal(model.run_batch(block, states, 0), before)
    assert token_weights("none", model, block, states, 0) is None
    assert model.config._attn_implementation != "eager"


def test_attention_that_shows_nothing_is_an_error(folders):
    model = StreamedModel(folders["bert"])
    states = model.start(_batches(False))
    block = model.load_block(0)
    for module in block.module.modules():
        if "Attention" in type(module).__name__:
            module.__class__ = type("Opaque", (type(module),), {})
    with pytest.raises(AttentionHidden, match="'norm' or 'none'"):
        token_weights("attention", model, block, states, 0)

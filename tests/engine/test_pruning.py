"""Pruning block by block against the whole model in float64, and the exactness that is promised."""

from __future__ import annotations

import math

import pytest
import torch

from compression.anatomy import inspect
from compression.anatomy.budget import remove_count, uniform_counts
from compression.checkpoint import Store
from compression.criteria import criteria
from compression.granularity.base import parse_granularity
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.pruning import MaskFiles, PruneSettings, WeightPruner, finished_files
from compression.statistics import reconstruction_error, sample_positions, weight_error
from tests.tiny_models import tiny_bert, tiny_llama


class Silent:
    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def log(self, message: str) -> None:
        raise AssertionError(message)


def _batches(padded: bool = False, vocabulary: int = 257) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(1, vocabulary, (4, 24), generator=generator)} for _ in range(2)]
    if padded:
        for batch in batches:
            mask = torch.ones(4, 24, dtype=torch.int64)
            mask[1, 10:] = 0
            mask[3, 3:] = 0
            batch["attention_mask"] = mask
    return batches


def _sites(folder):
    return list(inspect(read_config(folder), WeightReader(folder).names()).sites)


def _settings(folder, criterion="wanda", pattern="unstructured", sparsity=0.5, **options) -> PruneSettings:
    total = sum(site.size for site in _sites(folder))
    remove = remove_count(sparsity, total)
    return PruneSettings(criterion, parse_granularity(pattern), remove, **options)


def _prune(folder, root, settings, batches):
    store = Store(root, "k")
    arguments = (lambda: StreamedModel(folder), _sites(folder), settings, batches, store, Silent())
    # Of the domain, the last batches first.
    pruner = WeightPruner(*arguments, domain=batches and batches[::-1])
    return pruner.run(), WeightReader(folder, finished_files(store, 9)), MaskFiles(store, _sites(folder))


def _reference_norms(folder, architecture, batches) -> dict[str, torch.Tensor]:
    """Norms of the inputs of every linear layer of the stock model in float64, one token after another."""
    import transformers

    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float64).eval()
    squares: dict[str, torch.Tensor] = {}
    masks: list[torch.Tensor] = []

    def hook(name):
        def inner(module, inputs):
            for row, tokens in zip(inputs[0], masks[-1], strict=True):
                for vector, real in zip(row, tokens, strict=True):
                    if real:
                        squares[name] = squares.get(name, 0) + vector.square()

        return inner

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layer" in name:
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    for batch in batches:
        masks.append(batch.get("attention_mask", torch.ones_like(batch["input_ids"])))
        with torch.no_grad():
            model(**batch)
    return {name: value.sqrt() for name, value in squares.items()}


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_wanda_masks_are_those_of_the_whole_model_in_float64(tmp_path, kind):
    if kind == "llama":
        folder, architecture, batches = tiny_llama(tmp_path / "m"), "LlamaForCausalLM", _batches()
    else:
        folder = tiny_bert(tmp_path / "m", labels=["a", "b"])
        architecture, batches = "BertForSequenceClassification", _batches(padded=True)
    settings = _settings(folder, sequential=False)
    _, pruned, masks = _prune(folder, tmp_path / "steps", settings, batches)
    norms = _reference_norms(folder, architecture, batches)
    dense = WeightReader(folder)
    for site in _sites(folder):
        weight = dense.tensor(site.name)
        scores = weight.double().abs() * norms[site.name]
        for row in range(site.shape[0]):
            order = sorted(range(site.shape[1]), key=lambda column, row=row: float(scores[row, column]))
            removed = int((~masks[site.name][row]).sum())
            assert removed == site.shape[1] // 2
            expected = set(order[:removed])
            found = set((~masks[site.name][row]).nonzero().flatten().tolist())
            # Scores that agree to seven digits may change places between float32 and float64.
            for column in expected ^ found:
                edge = float(scores[row, order[removed - 1]])
                assert math.isclose(float(scores[row, column]), edge, rel_tol=1e-5)
        assert torch.equal(pruned.tensor(site.name), weight * masks[site.name])


@pytest.mark.parametrize("criterion", criteria.names())
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "1:16", "3:4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sparsity_is_exact(tmp_path, criterion, pattern, dtype):
    folder = tiny_llama(tmp_path / "m", dtype=dtype)
    settings = _settings(folder, criterion, pattern, 0.37)
    facts, pruned, masks = _prune(folder, tmp_path / "steps", settings, _batches())
    parsed = parse_granularity(pattern)
    total = 0
    for site, fact in zip(_sites(folder), facts, strict=True):
        weight = pruned.tensor(site.name)
        assert weight.dtype == WeightReader(folder).dtype(site.name)
        assert fact["name"] == site.name
        assert fact["zeros"] == int((weight == 0).sum()) == int((~masks[site.name]).sum())
        total += fact["zeros"]
        if parsed.kind == "n:m":
            groups = masks[site.name].view(site.shape[0], -1, parsed.group).sum(-1)
            assert bool((groups == parsed.keep).all())
        else:
            assert abs(fact["zeros"] - 0.37 * site.size) <= 1
        assert 0 < fact["weight_error"] < 1
        assert 0 < fact["reconstruction_error"]
    if parsed.kind == "unstructured":
        assert total == settings.remove_total


@pytest.mark.parametrize("criterion", criteria.names())
def test_a_global_allocation_is_exact_and_keeps_the_minimum(tmp_path, criterion):
    folder = tiny_llama(tmp_path / "m", layers=3)
    settings = _settings(folder, criterion, sparsity=0.8, allocation="global", minimum_density=0.15)
    facts, _, _ = _prune(folder, tmp_path / "steps", settings, _batches())
    assert sum(fact["zeros"] for fact in facts) == settings.remove_total
    sizes = {site.name: site.size for site in _sites(folder)}
    assert all(fact["kept"] >= 0.15 * sizes[fact["name"]] for fact in facts)
    if criterion != "random":
        even = uniform_counts(sizes, settings.remove_total)
        assert any(abs(fact["zeros"] - even[fact["name"]]) > 5 for fact in facts)


def test_later_blocks_see_pruned_earlier_ones_only_when_asked(tmp_path):
    folder = tiny_llama(tmp_path / "m", layers=2)
    facts = {
        sequential: _prune(
            folder, tmp_path / f"steps{sequential}", _settings(folder, sequential=sequential), _batches()
        )
        for sequential in (True, False)
    }
    first = "model.layers.0.self_attn.q_proj.weight"
    last = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(facts[True][2][first], facts[False][2][first])
    assert not torch.equal(facts[True][2][last], facts[False][2][last])


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_going_on_after_any_block_gives_the_same_bytes(tmp_path, sequential, allocation):
    folder = tiny_llama(tmp_path / "m", layers=3)
    settings = _settings(folder, sequential=sequential, allocation=allocation)

    class Stop(Exception):
        pass

    def stops_at(block: int):
        passed = [0]

        def hook(name: str) -> None:
            passed[0] += 1
            if passed[0] > block:
                raise Stop

        return hook

    _prune(folder, tmp_path / "whole", settings, _batches())
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for block in range(3):
        root = tmp_path / f"resumed{block}"
        pruner = WeightPruner(
            lambda: StreamedModel(folder),
            _sites(folder),
            settings,
            _batches(),
            Store(root, "k"),
            Silent(),
            stops_at(block),
        )
        with pytest.raises(Stop):
            pruner.run()
        _prune(folder, root, settings, _batches())
        assert sorted(path.name for path in root.iterdir()) == files
        for name in files:
            assert (root / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_zeros_that_are_there_go_first(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_llama(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][:5] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for criterion in criteria.names():
        settings = _settings(folder, criterion, sparsity=0.25)
        _, pruned, masks = _prune(folder, tmp_path / criterion, settings, _batches())
        assert int((pruned.tensor(name) == 0).sum()) == 512
        assert not bool(masks[name][:5].any())


def test_padding_changes_nothing(tmp_path):
    folder = tiny_bert(tmp_path / "m", labels=["a", "b"])
    batch = _batches(padded=True)[0]
    other = {name: value.clone() for name, value in batch.items()}
    other["input_ids"][batch["attention_mask"] == 0] = 77
    settings = _settings(folder)
    first = _prune(folder, tmp_path / "one", settings, [batch])
    second = _prune(folder, tmp_path / "two", settings, [other])
    assert first[0] == second[0]
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


def test_samples_are_spread_over_real_tokens(tmp_path):
    folder = tiny_bert(tmp_path / "m")
    batches = _batches(padded=True)
    states = StreamedModel(folder).start(batches)
    for limit in (7, 50, 10_000):
        positions = sample_positions(states, limit)
        real = sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert sum(place.numel() for place in positions) == min(limit, real)
        for place, batch in zip(positions, batches, strict=True):
            assert bool(batch["attention_mask"].flatten()[place].bool().all())
            assert place.unique().numel() == place.numel()


@pytest.mark.parametrize("piece", [1, 24, 40, 1 << 20])
def test_errors_against_float64(monkeypatch, piece):
    monkeypatch.setattr("compression.granularity.base.PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 12, generator=generator)
    dense = torch.randn(8, 12, generator=generator)
    pruned = dense * (torch.rand(8, 12, generator=generator) > 0.5)
    bias = torch.randn(8, generator=generator)
    x, w, v = inputs.double().numpy(), dense.double().numpy(), pruned.double().numpy()
    repaired = ((x @ w.T - x @ v.T - bias.double().numpy()) ** 2).sum() / ((x @ w.T) ** 2).sum()
    assert reconstruction_error(inputs, dense, pruned, bias) == pytest.approx(repaired, rel=1e-5)
    expected = ((x @ w.T - x @ v.T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    assert reconstruction_error(inputs, dense, pruned) == pytest.approx(expected, rel=1e-5)
    assert weight_error(dense, pruned) == pytest.approx(
        (((w - v) ** 2).sum() / (w**2).sum()) ** 0.5, rel=1e-6
    )
    assert reconstruction_error(inputs, torch.zeros_like(dense), torch.zeros_like(dense)) == 0.0

"""Every entry of every axis through the pruner, on whole tiny models: exact totals, the same bytes again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compression.allocation import allocations
from compression.anatomy import inspect
from compression.anatomy.budget import remove_count
from compression.checkpoint import Store
from compression.criteria import criteria
from compression.granularity.base import parse_granularity
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.pruning import MaskFiles, PruneSettings, WeightPruner, finished_files
from tests.tiny_models import tiny_bert, tiny_llama

SHORT = {
    "evolution_generations": 2, "evolution_offspring": 3, "evolution_sequences": 4,
    "distortion_sequences": 2, "ecoflap_directions": 2, "ecoflap_sequences": 2,
}  # fmt: skip


class Silent:
    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def log(self, message: str) -> None:
        raise AssertionError(message)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(root / "llama"),
        "bert": tiny_bert(root / "bert", labels=["a", "b"]),
        "deep": tiny_llama(root / "deep", layers=3),
    }


def _batches(kind: str, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [{"input_ids": torch.randint(1, 257, (3, 16), generator=generator)} for _ in range(2)]
    for batch in batches if kind == "bert" else []:
        mask = torch.ones(3, 16, dtype=torch.int64)
        mask[1, 7:] = 0
        batch["attention_mask"] = mask
        batch["labels"] = torch.tensor([0, 1, 1])
    return batches


def _sites(folder):
    return list(inspect(read_config(folder), WeightReader(folder).names()).sites)


def _settings(
    folder, criterion="wanda", granularity="unstructured", sparsity=0.5, **options
) -> PruneSettings:
    pattern = parse_granularity(granularity)
    unit = pattern.shape[0] * pattern.shape[1]
    remove = remove_count(sparsity, sum(site.size for site in _sites(folder))) // unit * unit
    options = {"gradient_sequences": 4, "gradient_directions": 2, "parameters": SHORT, **options}
    return PruneSettings(criterion, pattern, remove, **options)


def _pruner(folder, root, settings, kind, hook=None) -> WeightPruner:
    batches = None if kind is None else _batches(kind)
    domain = None if kind is None else _batches(kind, seed=2)
    arguments = (lambda: StreamedModel(folder), _sites(folder), settings, batches, Store(root, "k"), Silent())
    return WeightPruner(*arguments, hook, domain=domain)


def _contents(root) -> dict[str, bytes]:
    assert all(path.is_file() for path in root.iterdir())
    return {path.name: path.read_bytes() for path in root.iterdir()}


def _check(folder, root, settings, facts) -> None:
    """Counts are exact, masks agree with the zeros, what stays is what was there (without updates)."""
    pruned = WeightReader(folder, finished_files(Store(root, "k"), 9))
    dense, masks = WeightReader(folder), MaskFiles(Store(root, "k"), _sites(folder))
    pattern, gone = settings.pattern, 0
    for site, fact in zip(_sites(folder), facts, strict=True):
        mask = masks[site.name]
        removed = int((~mask).sum())
        assert fact["removed"] == removed
        assert torch.equal(pruned.tensor(site.name), dense.tensor(site.name) * mask)
        gone += removed
        if pattern.kind == "n:m":
            assert bool((mask.reshape(-1, pattern.group).sum(1) == pattern.keep).all())
        elif pattern.kind == "block":
            rows, columns = pattern.shape
            parts = mask.reshape(site.shape[0] // rows, rows, site.shape[1] // columns, columns).sum((1, 3))
            assert set(parts.unique().tolist()) <= {0, rows * columns}
        if pattern.kind != "n:m":
            assert site.size - removed >= settings.minimum_density * site.size
            assert site.size - removed <= settings.maximum_density * site.size
    assert gone == settings.remove_total


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("granularity", ["unstructured", "2:4", "4x4"])
@pytest.mark.parametrize("criterion", criteria.names())
def test_every_criterion_with_every_granularity(folders, tmp_path, criterion, granularity, kind):
    folder = folders[kind]
    settings = _settings(folder, criterion, granularity)
    facts = _pruner(folder, tmp_path / "a", settings, kind).run()
    _check(folder, tmp_path / "a", settings, facts)
    assert _pruner(folder, tmp_path / "b", settings, kind).run() == facts
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("granularity", ["unstructured", "4x4"])
@pytest.mark.parametrize("allocation", allocations.names())
def test_every_allocation_is_exact_and_repeatable(folders, tmp_path, allocation, granularity, kind):
    folder = folders[kind]
    options = {"allocation": allocation, "minimum_density": 0.125, "maximum_density": 0.75}
    settings = _settings(folder, "wanda", granularity, 0.6, **options)
    facts = _pruner(folder, tmp_path / "a", settings, kind).run()
    _check(folder, tmp_path / "a", settings, facts)
    assert _pruner(folder, tmp_path / "b", settings, kind).run() == facts
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
    if allocation not in ("uniform", "erk"):
        shares = {round(fact["sparsity"], 3) for fact in facts}
        assert len(shares) > 1, "nothing was allocated"


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize(
    "allocation", [entry.name for entry in allocations if not entry.needs - {"scores", "weights"}]
)
def test_what_needs_no_data_runs_without(folders, tmp_path, allocation, criterion):
    settings = _settings(folders["llama"], criterion, allocation=allocation)
    facts = _pruner(folders["llama"], tmp_path, settings, None).run()
    _check(folders["llama"], tmp_path, settings, facts)
    assert all(fact["reconstruction_error"] is None for fact in facts)


CHAINS = [
    {"update": ("sparsegpt",)},
    {"update": ("sparsegpt", "bias-compensation"), "allocation": "owl", "token_weight": "attention"},
    {"criterion": "gblm", "token_weight": "norm"},
    {"criterion": "gblm", "gradient": "zeroth-order", "granularity": "2:4"},
    {"criterion": "d-pruner"},
    {"criterion": "d-pruner", "gradient": "zeroth-order", "allocation": "global", "update": ("sparsegpt",)},
    {"allocation": "distortion-dp"},
    {"allocation": "distortion-dp", "criterion": "gblm", "update": ("sparsegpt",)},
    {"allocation": "evolution", "granularity": "4x4", "sequential": False},
]


class Stop(Exception):
    pass


def _stops_at(block: int):
    left = [block]

    def hook(name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return hook


@pytest.mark.parametrize("options", CHAINS, ids=lambda options: "-".join(map(str, options.values())))
def test_going_on_after_any_block_gives_the_same_bytes(folders, tmp_path, options):
    folder = folders["deep"]
    settings = _settings(folder, **options)
    facts = _pruner(folder, tmp_path / "whole", settings, "llama").run()
    assert sum(fact["removed"] for fact in facts) == settings.remove_total
    expected = _contents(tmp_path / "whole")
    for block in range(3):
        root = tmp_path / f"resumed{block}"
        with pytest.raises(Stop):
            _pruner(folder, root, settings, "llama", _stops_at(block)).run()
        assert len(_contents(root)) < len(expected)
        assert _pruner(folder, root, settings, "llama").run() == facts
        assert _contents(root) == expected


@pytest.mark.parametrize("allocation", ["distortion-dp", "evolution", "owl"])
def test_going_on_amid_an_allocation_gives_the_same_bytes(folders, tmp_path, allocation):
    folder, settings = folders["llama"], _settings(folders["llama"], allocation=allocation)
    whole, stopped = (_pruner(folder, tmp_path / name, settings, "llama") for name in ("whole", "stopped"))
    whole.run()
    for after in (1, 2, 3):
        heard = [after]

        class Breaks(Silent):
            def progress(self, done: int, total: int, heard=heard) -> None:
                heard[0] -= 1
                if not heard[0]:
                    raise Stop

        stopped._listener = Breaks()
        with pytest.raises(Stop):
            stopped.run()
    assert _pruner(folder, tmp_path / "stopped", settings, "llama").run()
    assert _contents(tmp_path / "stopped") == _contents(tmp_path / "whole")


def test_bias_compensation_moves_the_biases_by_what_went_on_average(folders, tmp_path):
    folder = folders["bert"]
    plain = _pruner(folder, tmp_path / "plain", _settings(folder), "bert").run()
    settings = _settings(folder, update=("bias-compensation",))
    facts = _pruner(folder, tmp_path / "moved", settings, "bert").run()
    first = [number for number, site in enumerate(_sites(folder)) if site.layer == 0]
    for number in first:
        assert facts[number]["removed"] == plain[number]["removed"]
        assert facts[number]["reconstruction_error"] < plain[number]["reconstruction_error"]
    dense, pruned = (
        WeightReader(folder),
        WeightReader(folder, finished_files(Store(tmp_path / "moved", "k"), 2)),
    )
    masks, other = (MaskFiles(Store(tmp_path / name, "k"), _sites(folder)) for name in ("moved", "plain"))
    inputs = _first_inputs(folder)
    for number in first:
        name = _sites(folder)[number].name
        assert torch.equal(masks[name], other[name])
        bias = name.removesuffix("weight") + "bias"
        weight = dense.tensor(name).double()
        expected = (weight * ~masks[name]) @ inputs[name].mean(0)
        change = pruned.tensor(bias).double() - dense.tensor(bias).double()
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
        assert bool((change != 0).any())


def _first_inputs(folder) -> dict[str, Tensor]:
    """Inputs of the weights of the first block of the stock model, real tokens only, float64."""
    import transformers

    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float64
    ).eval()
    found: dict[str, list[Tensor]] = {}
    for batch in _batches("bert"):
        real = batch["attention_mask"].bool()
        handles = [
            stock.get_submodule(site.name.removesuffix(".weight")).register_forward_pre_hook(
                lambda module, args, name=site.name, real=real: found.setdefault(name, []).append(
                    args[0][real]
                )
            )
            for site in _sites(folder)
        ]
        with torch.no_grad():
            stock(**batch)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_bias_compensation_leaves_a_model_without_biases_alone(folders, tmp_path):
    folder = folders["llama"]
    _pruner(folder, tmp_path / "a", _settings(folder), "llama").run()
    settings = _settings(folder, update=("bias-compensation",))
    _pruner(folder, tmp_path / "b", settings, "llama").run()
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")

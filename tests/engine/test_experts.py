"""Mixtures of experts: each expert is measured, pruned and written as if it were a model of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from compression import gradients, pipeline
from compression.anatomy import Inspection
from compression.anatomy.inspection import Site
from compression.anatomy.slices import Slice, slice_of
from compression.checkpoint import Store
from compression.criteria.base import SiteStatistics
from compression.cutting import PruneSettings, cut_site
from compression.evaluation import stock
from compression.evaluation.cost import cost
from compression.export.masks import read_masks
from compression.granularity.base import parse_granularity
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.loading.weights import TensorMissing, WeightReader
from compression.pruning import WeightPruner
from compression.statistics import Collector, sample_positions
from tests.engine.corpora import write_texts
from tests.engine.expert_models import tiny
from tests.engine.jobs import Recorder, request, write_job
from tests.tiny_families import tiny_family, tiny_model
from tests.tiny_models import write_byte_tokenizer

CASES = [
    "MixtralForCausalLM",
    "MixtralForCausalLM-tied",
    "Qwen2MoeForCausalLM",
    "Qwen2MoeForCausalLM-windows",
    "Qwen3MoeForCausalLM",
]
NEEDS = frozenset({"activations", "means", "hessian"})


def inspected(folder: Path) -> Inspection:
    return Inspection.from_json(admit_model(folder_sources(folder)).inspection)


def batches(padded: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for size in ((3, 30), (2, 17)):
        ids = torch.randint(3, 131, size, generator=generator)
        made.append({"input_ids": ids})
        if padded:
            mask = torch.ones_like(ids)
            mask[0, 9:] = 0
            made[-1]["attention_mask"] = mask
    return made


def expert_of(site: Site) -> int | None:
    """The expert that a site belongs to."""
    piece = slice_of(site.name)
    if piece is not None:
        return piece.expert
    found = site.name.partition(".experts.")[2]
    return int(found.partition(".")[0]) if found else None


LAYOUTS = pytest.mark.parametrize("layout", ["apart", "fused"])


@LAYOUTS
@pytest.mark.parametrize("case", CASES)
def test_both_layouts_are_one_model(case: str, layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", case, layout)
    model, info = stock.load_with_info(folder, "text-generation")
    assert not any(info.values()), info
    found = admit_model(folder_sources(folder))
    assert found.parameters == sum(value.numel() for value in model.parameters())
    for batch, output in zip(batches(True), StreamedModel(folder).outputs(batches(True)), strict=True):
        with torch.no_grad():
            assert (output - stock.answer(model, batch, "text-generation")).abs().max() <= 1e-5


@LAYOUTS
def test_every_site_is_the_weight_of_the_stock_model(layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "Qwen2MoeForCausalLM", layout)
    model = tiny_model("Qwen2MoeForCausalLM")
    reader, streamed = WeightReader(folder), StreamedModel(folder)
    blocks = [streamed.load_block(index) for index in range(3)]
    counted = {"gate": 0, "up": 0, "down": 0}
    for site in inspected(folder).sites:
        assert torch.equal(reader.tensor(site.name), blocks[site.layer].parameter(site.name))
        expert = expert_of(site)
        if expert is None:
            continue
        experts = model.model.layers[site.layer].mlp.experts
        gate, up = experts.gate_up_proj[expert].chunk(2)
        wanted = {"gate": gate, "up": up, "down": experts.down_proj[expert]}[site.kind]
        assert torch.equal(reader.tensor(site.name), wanted)
        assert site.share == 0.5
        counted[site.kind] += 1
    assert set(counted.values()) == {3 * 4}


def test_names_of_slices() -> None:
    for piece in (Slice("a.experts.down_proj", 0), Slice("a/b", 17, "gate"), Slice("x", 99999, "up")):
        assert slice_of(piece.name) == piece
    for name in ("a", "a/", "a/01", "a/1/", "a/1/down", "/1", "a/-1", "a/1/gate/up", "a/123456", "a/1\n"):
        assert slice_of(name) is None


def test_slices_that_are_not_there(tmp_path: Path) -> None:
    reader = WeightReader(tiny(tmp_path / "m", "MixtralForCausalLM", "fused"))
    for name in ("model.layers.0.mlp.experts.down_proj/4", "model.layers.9.mlp.experts.down_proj/0"):
        with pytest.raises(TensorMissing):
            reader.tensor(name)


# -- statistics


def naive(model: Any, layer: int, site: Site, padded: bool, pooled: bool = False) -> SiteStatistics:
    """What an expert's weight sees in the stock model, token by token in float64."""
    experts, router = model.model.layers[layer].mlp.experts, model.model.layers[layer].mlp.gate
    calls: list[torch.Tensor] = []
    handle = experts.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    rows = []
    for batch in batches(padded):
        with torch.no_grad():
            model(**batch)
        hidden = calls.pop()
        scores = functional.linear(hidden.double(), router.weight.double())
        chosen = scores.topk(router.top_k, dim=-1).indices
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).reshape(-1)
        for token in range(hidden.shape[0]):
            if real[token] and (pooled or expert_of(site) in chosen[token].tolist()):
                rows.append(hidden[token].double())
    handle.remove()
    x = torch.stack(rows) if rows else torch.zeros(0, hidden.shape[1], dtype=torch.float64)
    if site.kind == "down":
        gate, up = experts.gate_up_proj[expert_of(site)].detach().double().chunk(2)
        x = functional.silu(x @ gate.T) * (x @ up.T)
    return SiteStatistics(x.square().sum(0).sqrt(), len(x), x.sum(0) / max(1, len(x)), x.T @ x)


@LAYOUTS
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_statistics_are_those_of_each_expert(case: str, padded: bool, layout: str, tmp_path: Path) -> None:
    folder, model = tiny(tmp_path / "m", case, layout), tiny_model(case)
    sites = [site for site in inspected(folder).sites if site.layer == 1]
    collector = collect(folder, 1, padded)
    tokens = 0
    for site in (site for site in sites if expert_of(site) is not None):
        wanted = naive(model, 1, site, padded)
        assert collector.routed(site.name) == wanted.tokens
        wanted = wanted if wanted.tokens else naive(model, 1, site, padded, pooled=True)
        found = collector.statistics(site.name)
        assert found.tokens == wanted.tokens
        tokens += collector.routed(site.name) or 0
        for name in NEEDS:
            scale = float(wanted.need(name).abs().max())
            assert (found.need(name).double() - wanted.need(name)).abs().max() <= 1e-5 * scale, name
        assert 0 < len(collector.sample(site.name)) <= min(64, wanted.tokens)
    counted = sum(
        int(b.get("attention_mask", torch.ones_like(b["input_ids"])).sum()) for b in batches(padded)
    )
    assert tokens == 3 * counted * model.model.layers[1].mlp.gate.top_k


def collect(folder: Path, layer: int, padded: bool = False) -> Collector:
    streamed = StreamedModel(folder)
    states = streamed.start(batches(padded))
    for index in range(layer):
        streamed.run_block(streamed.load_block(index), states)
    block = streamed.load_block(layer)
    names = [site.name for site in inspected(folder).sites if site.layer == layer]
    with Collector(block, names, states, sample_positions(states), NEEDS) as collector:
        for number in range(len(states)):
            collector.batch(number)
            streamed.run_batch(block, states, number)
    return collector


@LAYOUTS
def test_an_expert_without_tokens_sees_all_of_them(layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "MixtralForCausalLM-tied", layout)
    model = unroute(folder)
    sites = [site for site in inspected(folder).sites if site.layer == 0 and expert_of(site) == 3]
    collector = collect(folder, 0)
    for site in sites:
        wanted = naive(model, 0, site, False, pooled=True)
        found = collector.statistics(site.name)
        assert collector.routed(site.name) == 0
        assert found.tokens == wanted.tokens == 3 * 30 + 2 * 17
        for name in NEEDS:
            scale = float(wanted.need(name).abs().max())
            assert (found.need(name).double() - wanted.need(name)).abs().max() <= 1e-5 * scale


def unroute(folder: Path) -> Any:
    """Give routers that choose one of two experts, of opposite scores; what always scores zero never wins."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if name.endswith(".gate.weight"):
            value[0], value[2:] = -value[1], 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    return stock.load(folder, "text-generation")


# -- masks and new weights


def pruned(folder: Path, tmp_path: Path, **options: Any) -> tuple[WeightPruner, list[dict[str, Any]]]:
    sites = inspected(folder).sites
    settings = PruneSettings(
        options.pop("criterion", "wanda"), parse_granularity(options.pop("granularity", "unstructured")),
        sum(site.size // 2 for site in sites), **options,
    )  # fmt: skip
    pruner = WeightPruner(
        lambda: StreamedModel(folder), sites, settings, batches(), Store(tmp_path / "steps", "k"), Recorder()
    )
    return pruner, pruner.run()


@LAYOUTS
def test_masks_are_those_of_the_expert_and_not_of_all_tokens(layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "Qwen3MoeForCausalLM", layout)
    pruner, facts = pruned(folder, tmp_path, sequential=False)
    model, differ = tiny_model("Qwen3MoeForCausalLM"), 0
    for site, fact in zip(pruner.sites, facts, strict=True):
        if expert_of(site) is None:
            assert fact["routed_tokens"] is None
            continue
        assert fact["zeros"] == fact["removed"] == site.size // 2
        own, pooled = (naive(model, site.layer, site, False, pooled) for pooled in (False, True))
        assert fact["routed_tokens"] == own.tokens > 0
        weight = WeightReader(folder).tensor(site.name)
        path = pruner.store.path(pruner.step_name(site.layer))
        mask = load_file(path)[site.name] != 0
        remove = site.size // 2
        wanted, other = (
            cut_site(pruner.settings, site, weight, statistics, remove).mask for statistics in (own, pooled)
        )
        assert (mask != wanted).float().mean() < 1e-3
        differ += not torch.equal(mask, other)
    assert differ > 60


@LAYOUTS
@pytest.mark.parametrize("recipe", ["wanda", "sparsegpt", "magnitude", "gblm"])
def test_whole_jobs(recipe: str, layout: str, tmp_path: Path) -> None:
    case = "Qwen2MoeForCausalLM" if layout == "apart" else "MixtralForCausalLM"
    dense = tiny(tmp_path / "model", case, layout, vocab_size=264)
    write_byte_tokenizer(dense, context=60)
    write_texts(tmp_path / "text.jsonl", 60)
    specification: dict[str, Any] = {
        "recipe": recipe,
        "target": {"sparsity": 0.5},
        "evaluation": {"dataset": "dst_text", "measure": [], "samples": 4, "sequence_length": 32},
    }
    if recipe != "magnitude":
        specification["calibration"] = {"dataset": "dst_text", "samples": 8, "sequence_length": 32}
    write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, outcome.artifact))
    assert {name: value.shape for name, value in before.items()} == {n: v.shape for n, v in after.items()}
    sites, reader = inspected(dense).sites, WeightReader(outcome.artifact)
    for site in sites:
        assert int((reader.tensor(site.name) == 0).sum()) == site.size // 2
    masks = dict(read_masks(outcome.artifact / "secateur" / "masks.safetensors"))
    assert set(masks) == {site.name for site in sites}
    touched = {site.name for site in sites} | {name for name in before if ".experts." in name}
    for name in before.keys() - touched:
        assert torch.equal(before[name], after[name]), name
    report = json.loads(outcome.report.read_text())
    assert report["target"]["achieved"] == 0.5
    assert len(report["sites"]) == len(sites)
    assert report["verification"]["max_abs_difference"] <= 1e-5
    streamed = list(StreamedModel(outcome.artifact).outputs(batches()))
    model = stock.load(outcome.artifact, "text-generation")
    with torch.no_grad():
        for batch, output in zip(batches(), streamed, strict=True):
            assert (stock.answer(model, batch, "text-generation") - output).abs().max() <= 1e-5


@LAYOUTS
def test_cost_counts_the_experts_that_are_used(layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "Qwen3MoeForCausalLM", layout)
    inspection, reader = inspected(folder), WeightReader(folder)
    whole = cost(reader, inspection, sequence_length=8, weight_bytes=1)
    assert whole["prunable_nonzeros"] == whole["prunable_parameters"] == inspection.prunable_parameters
    routed = sum(site.size for site in inspection.sites if site.share < 1)
    assert routed == 3 * 8 * 3 * 24 * 32
    always = sum(site.size for site in inspection.sites if site.share == 1)
    outside = 131 * 32 + 3 * 8 * 32
    attention = 2 * 3 * 4 * 16 * 8 * 8
    assert whole["macs"] == 8 * (always + routed // 4 + outside) + attention
    pruner, _ = pruned(folder, tmp_path)
    over = WeightReader(folder, [pruner.store.path(pruner.step_name(index)) for index in range(3)])
    half = cost(over, inspection, sequence_length=8, weight_bytes=1)
    assert half["sparsity"] == 0.5
    assert whole["macs"] - half["macs_nonzero"] == 8 * (always + routed // 4) // 2


# -- gradients


@LAYOUTS
@pytest.mark.parametrize("case", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_gradients_are_those_of_the_stock_model(case: str, layout: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", case, layout)
    sites, model = inspected(folder).sites, tiny_model(case).requires_grad_()
    single = gradients.single_sequences(batches(), 4)
    store = Store(tmp_path / "steps", "k")
    kinds = ("mean", "square")
    found = gradients.exact(lambda: StreamedModel(folder), sites, single, store, kinds, lambda *_: None)
    names = {id(value): name for name, value in model.named_parameters()}
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in names.values()}
    for batch in single:
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        for name, parameter in model.named_parameters():
            sums[name].append(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            )
    for site in sites:
        expert = expert_of(site)
        if expert is None:
            values = sums[site.name]
        else:
            place = f"model.layers.{site.layer}.mlp.experts."
            leaf = "down_proj" if site.kind == "down" else "gate_up_proj"
            values = [part(value[expert], site.kind) for value in sums[place + leaf]]
        mean = torch.stack(values).mean(0)
        square = torch.stack(values).square().mean(0)
        for kind, wanted in (("mean", mean), ("square", square)):
            assert (found.of(site)[kind] - wanted).abs().max() <= 1e-5 * max(1e-3, float(wanted.abs().max()))


def part(value: torch.Tensor, kind: str) -> torch.Tensor:
    """The rows of an expert's tensor that belong to a kind of weight."""
    return value if kind == "down" else value.chunk(2)[kind == "up"]


def test_the_block_is_as_it_was_after_gradients(tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", "MixtralForCausalLM")
    streamed = StreamedModel(folder)
    states, block = streamed.start(batches()), streamed.load_block(0)
    before = streamed.run_batch(block, states, 0)
    site = next(site for site in inspected(folder).sites if expert_of(site) == 1)
    parameter = block.parameter(site.name).requires_grad_()
    args, kwargs = states.calls[0][0]
    with torch.enable_grad():
        output = block.module(states.hidden[0], *args, **kwargs)
    assert torch.equal(output, before)
    assert "gate_up_proj" not in block.experts.module.__dict__
    parameter.data.zero_()
    assert not torch.equal(streamed.run_batch(block, states, 0), before)
    assert block.parameter(site.name) is parameter


@pytest.mark.parametrize(
    ("layout", "method"),
    [
        ("apart", "lora"),
        ("fused", "distillation"),
        pytest.param("fused", "lora", marks=pytest.mark.slow),
        pytest.param("apart", "distillation", marks=pytest.mark.slow),
    ],
)
def test_recovery_leaves_experts_alone(method: str, layout: str, tmp_path: Path) -> None:
    dense = tiny(tmp_path / "model", "Qwen3MoeForCausalLM", layout, vocab_size=264)
    write_byte_tokenizer(dense, context=60)
    write_texts(tmp_path / "text.jsonl", 60)
    specification = {
        "recipe": "magnitude",
        "target": {"sparsity": 0.5},
        "recovery": {"method": method, "dataset": "dst_text", "budget": {"steps": 4}},
        "evaluation": {"dataset": "dst_text", "measure": [], "samples": 4, "sequence_length": 32},
    }
    write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    reader, before = WeightReader(outcome.artifact), WeightReader(dense)
    for site in inspected(dense).sites:
        weight = reader.tensor(site.name)
        assert int((weight == 0).sum()) == site.size // 2
        if expert_of(site) is not None:
            assert torch.equal(weight, before.tensor(site.name) * (weight != 0))

"""Models of images against the stock classes, and whole jobs that need no data."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compression import pipeline
from compression.anatomy import Inspection, count_macs
from compression.checkpoint import Store
from compression.errors import SpecificationInvalid
from compression.evaluation import stock
from compression.evaluation.cost import cost
from compression.evaluation.macs import counted_macs
from compression.evaluation.types import IMAGES as TASK
from compression.export.model import write_model
from compression.export.verify import key_faults
from compression.gradients import exact
from compression.loading.admission import Admission, admit_model, folder_sources
from compression.loading.architectures import ARCHITECTURES
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.statistics import Collector, sample_positions
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, request, write_job
from tests.tiny_families import IMAGES, architecture_of, tiny_family, tiny_model
from tests.tiny_models import write_byte_tokenizer


def admitted(folder: Path) -> Admission:
    return admit_model(folder_sources(folder))


def inspected(folder: Path) -> Inspection:
    return Inspection.from_json(json.loads(json.dumps(admitted(folder).inspection)))


def batches(folder: Path, sizes: tuple[int, ...] = (3, 2)) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    image = inspected(folder).image
    assert image is not None
    return [{"pixel_values": torch.randn(size, *image, generator=generator)} for size in sizes]


def assert_like_stock(folder: Path, **options: Any) -> None:
    model, info = stock.load_with_info(folder, TASK)
    assert not key_faults(info, TASK), info
    found = list(StreamedModel(folder, **options).outputs(batches(folder)))
    for batch, output in zip(batches(folder), found, strict=True):
        with torch.no_grad():
            assert (output - stock.answer(model, batch, TASK)).abs().max() <= 1e-5


@pytest.mark.parametrize("case", IMAGES)
def test_tensors_sites_and_parameters(case: str, tmp_path: Path) -> None:
    folder, model = tiny_family(tmp_path / "m", case), tiny_model(case)
    found, inspection = admitted(folder), inspected(folder)
    stored = load_file(folder / "model.safetensors")
    assert found.parameters == inspection.parameters == sum(value.numel() for value in model.parameters())
    assert found.parameters == sum(value.numel() for value in stored.values())
    lists = [model.get_submodule(name) for name in ARCHITECTURES[architecture_of(case)].lists(model)]
    modules = [module for blocks in lists for module in blocks.modules()]
    linears = [module for module in modules if isinstance(module, torch.nn.Linear)]
    assert sorted(site.size for site in inspection.sites) == sorted(item.weight.numel() for item in linears)
    assert inspection.layer_parameters == sum(value.numel() for value in lists[0][0].parameters())
    for site in inspection.sites:
        assert site.shape == tuple(stored[site.name].shape)
    reasons = [item["reason"] for item in inspection.not_prunable]
    assert any("patches" in reason for reason in reasons)
    assert any("head" in reason for reason in reasons)


@pytest.mark.parametrize("case", IMAGES)
def test_streamed_outputs(case: str, tmp_path: Path) -> None:
    assert_like_stock(tiny_family(tmp_path / "m", case))


@pytest.mark.parametrize("case", IMAGES)
def test_batches_go_in_groups(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.loading.streamed.GROUP_BYTES", 1)
    assert_like_stock(tiny_family(tmp_path / "m", case))


@pytest.mark.parametrize("case", IMAGES)
def test_the_rewritten_config_means_the_same_model(case: str, tmp_path: Path) -> None:
    folder, other = tiny_family(tmp_path / "m", case), tmp_path / "other"
    found = admitted(folder)
    other.mkdir()
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (other / "config.json").write_bytes(found.rewritten["config.json"])
    before, after = stock.load(folder, TASK), stock.load(other, TASK)
    for batch in batches(folder):
        with torch.no_grad():
            assert torch.equal(stock.answer(before, batch, TASK), stock.answer(after, batch, TASK))
    assert admitted(other).config == found.config
    assert not admitted(other).dropped


@pytest.mark.parametrize("case", IMAGES)
def test_macs(case: str, tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", case)
    inspection = inspected(folder)
    name = architecture_of(case)
    loader = getattr(importlib.import_module(ARCHITECTURES[name].module), name)
    model = loader.from_pretrained(folder, attn_implementation="eager")
    counted = counted_macs(model, batches(folder, (1,))[0], TASK)
    assert count_macs(inspection, inspection.context).total == counted


@pytest.mark.parametrize("case", IMAGES)
def test_a_model_without_a_layer(case: str, tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", case)
    found = admitted(folder)
    if "layer" not in found.inspection["granularities"]:
        assert found.family == "swin"
        return
    write_model(tmp_path / "a", WeightReader(folder), found.config, folder, kept=[0, 2])
    shorter = admitted(tmp_path / "a")
    assert shorter.parameters == found.parameters - found.inspection["layer_parameters"]
    assert_like_stock(tmp_path / "a")


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_classifier_that_kept_the_pooler_of_its_base(prefixed: bool, tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "m", "ViTForImageClassification")
    plain = admitted(folder).parameters
    tensors = load_file(folder / "model.safetensors")
    if prefixed:
        tensors |= {"vit.pooler.dense.weight": torch.ones(32, 32), "vit.pooler.dense.bias": torch.ones(32)}
    else:
        tensors = {name.removeprefix("vit."): value for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert admitted(folder).parameters == plain
    counted = cost(WeightReader(folder), inspected(folder), sequence_length=8, weight_bytes=1)
    assert counted["parameters"] == plain
    assert_like_stock(folder)


@pytest.mark.parametrize("case", IMAGES)
def test_statistics_of_patches(case: str, tmp_path: Path) -> None:
    """Norms and sampled inputs of a block, as its own layers see them in the stock model."""
    folder, model = tiny_family(tmp_path / "m", case), tiny_model(case)
    streamed = StreamedModel(folder)
    states = streamed.start(batches(folder))
    for index in range(streamed.layers - 1):
        streamed.advance(states, index)
        streamed.run_block(streamed.load_block(index), states)
    streamed.advance(states, streamed.layers - 1)
    block, seen = streamed.load_block(streamed.layers - 1), []
    sites = [site for site in inspected(folder).sites if site.layer == block.index]
    with Collector(block, [site.name for site in sites], states, sample_positions(states)) as collector:
        for number in range(len(states)):
            collector.batch(number)
            streamed.run_batch(block, states, number)
    layer = model.get_submodule(ARCHITECTURES[architecture_of(case)].lists(model)[-1])[-1]
    layer.mlp.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    for batch in batches(folder):
        with torch.no_grad():
            model(**batch)
    wanted = torch.cat([value.flatten(0, 1) for value in seen]).square().sum(0).sqrt()
    found = collector.statistics(sites[-1].name)
    assert found.tokens == sum(value[..., 0].numel() for value in seen)
    if inspected(folder).family == "vit":
        assert found.tokens == 5 * inspected(folder).context
    assert (found.column_norms - wanted).abs().max() <= 1e-4 * wanted.max()


WHOLE = [
    ("ViTForImageClassification-oblong", "magnitude"),
    ("DeiTForImageClassification", "lamp"),
    ("SwinForImageClassification-uneven", "global-magnitude"),
    ("ViTForImageClassification-oblong", "random"),
]
MORE = [
    pytest.param(case, recipe, marks=pytest.mark.slow)
    for case in dict.fromkeys(case for case, _ in WHOLE)
    for recipe in dict.fromkeys(recipe for _, recipe in WHOLE)
    if (case, recipe) not in WHOLE
]


@pytest.mark.parametrize(("case", "recipe"), [*WHOLE, *MORE])
def test_whole_jobs_without_data(case: str, recipe: str, tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "model", case)
    (dense / "preprocessor_config.json").write_text(json.dumps({"size": 24, "do_normalize": True}))
    measured = ["latency", "memory"] if recipe == "magnitude" else []
    specification = {"recipe": recipe, "target": {"sparsity": 0.5}, "evaluation": {"measure": measured}}
    write_job(tmp_path, "model", {}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, outcome.artifact))
    sites = inspected(dense).sites
    zeros = sum(int((after[site.name] == 0).sum()) for site in sites)
    assert zeros == sum(site.size for site in sites) // 2
    for name in before.keys() - {site.name for site in sites}:
        assert torch.equal(before[name], after[name]), name
    report = json.loads(outcome.report.read_text())
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert report["quality"]["headline"] is None
    if measured:
        assert report["latency"]["cases"][1]["what"].startswith("8 images of")
        assert report["cost"]["dense"]["sequence_length"] == inspected(dense).context
    assert (outcome.artifact / "preprocessor_config.json").exists()
    model = transformers.AutoModelForImageClassification.from_pretrained(outcome.artifact)
    with torch.no_grad():
        assert bool(torch.isfinite(model(**batches(dense)[0]).logits).all())


def test_gradients_flow_back_through_the_stages(tmp_path: Path) -> None:
    """Exact gradients of a loss, block by block and through the merging of patches, against the stock
    model in float64."""
    case = "SwinForImageClassification-uneven"
    folder, model = tiny_family(tmp_path / "m", case), tiny_model(case).double()
    sites, singles = inspected(folder).sites, batches(folder, (1, 1))
    files = exact(
        lambda: StreamedModel(folder), sites, singles, Store(tmp_path, "k"), ("mean",), lambda *_: None
    )
    parameters = dict(model.named_parameters())
    own = [StreamedModel(folder).block_names(site.layer) for site in sites]
    paths = ARCHITECTURES[architecture_of(case)].lists(model)
    places = [f"{path}.{layer}" for path in paths for layer in range(len(model.get_submodule(path)))]
    total: list[torch.Tensor] = [torch.zeros(()) for _ in sites]
    for one in singles:
        logits = model(pixel_values=one["pixel_values"].double()).logits
        loss = torch.nn.functional.cross_entropy(logits, logits.detach().argmax(-1))
        for place, (site, names) in enumerate(zip(sites, own, strict=True)):
            (inside,) = (name for name, stored in names.items() if stored == site.name)
            parameter = parameters[f"{places[site.layer]}.{inside}"]
            total[place] = total[place] + torch.autograd.grad(loss, parameter, retain_graph=True)[0] / 2
    for site, wanted in zip(sites, total, strict=True):
        edge = float(wanted.abs().max())
        torch.testing.assert_close(files.of(site)["mean"].double(), wanted, rtol=1e-3, atol=1e-4 * edge)


def test_two_of_four_without_data(tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "model", "ViTForImageClassification")
    specification = {
        "recipe": "magnitude", "target": {"sparsity": 0.5}, "structure": {"granularity": "2:4"},
        "evaluation": {"measure": []},
    }  # fmt: skip
    write_job(tmp_path, "model", {}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    after = load_file(outcome.artifact / "model.safetensors")
    for site in inspected(dense).sites:
        assert int((after[site.name] != 0).reshape(site.shape[0], -1, 4).sum(-1).max()) == 2


@pytest.mark.parametrize(
    ("case", "tokenizer"),
    [
        ("ViTForImageClassification", True),
        ("ViTForImageClassification", False),
        ("SwinForImageClassification", False),
    ],
)
def test_text_is_no_data_for_images(case: str, tokenizer: bool, tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "model", case)
    if tokenizer:
        write_byte_tokenizer(dense, bert=True, context=60)
    write_texts(tmp_path / "text.jsonl", 60, ("no", "perhaps", "yes"))
    for part in (
        {"recipe": "wanda", "calibration": {"dataset": "dst_text"}},
        {"recipe": "magnitude", "evaluation": {"dataset": "dst_text"}},
        {"recipe": "magnitude", "recovery": {"method": "lora", "dataset": "dst_text"}},
    ):
        write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, {"target": {"sparsity": 0.5}, **part})
        with pytest.raises(SpecificationInvalid, match="holds text, but this model takes images"):
            request(tmp_path, tmp_path / "work")


def test_patches_in_windows_have_no_weights_of_their_own(tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", "SwinForImageClassification")
    specification = {"recipe": "magnitude", "target": {"sparsity": 0.5}, "options": {"token_weight": "norm"}}
    write_job(tmp_path, "model", {}, specification)
    with pytest.raises(SpecificationInvalid, match="attends within windows"):
        request(tmp_path, tmp_path / "work")


@pytest.mark.parametrize("case", ["SwinForImageClassification-uneven", "ViTForImageClassification"])
def test_blocks_without_data(case: str, tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "model", case)
    assert "block" in inspected(dense).granularities
    specification = {
        "recipe": "magnitude", "target": {"sparsity": 0.5}, "structure": {"granularity": "4x4"},
        "evaluation": {"measure": []},
    }  # fmt: skip
    write_job(tmp_path, "model", {}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    after = load_file(outcome.artifact / "model.safetensors")
    for site in inspected(dense).sites:
        rows, columns = site.shape
        kept = (after[site.name] != 0).reshape(rows // 4, 4, columns // 4, 4).sum((1, 3))
        assert set(kept.unique().tolist()) <= {0, 16}

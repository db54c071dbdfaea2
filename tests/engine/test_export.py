"""The artifact: the same bytes each time, what the stock loader reads, masks and layers, and verification."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.errors import ArtifactVerificationFailed
from compression.evaluation import probe, stock
from compression.evaluation.types import FEATURES, GENERATION
from compression.export import verify
from compression.export.artifact import Artifact, ArtifactInputs, write_artifact
from compression.export.masks import pack, read_masks, unpack, write_masks
from compression.export.model import WrittenModel, kept_names, rewritten_config, write_model
from compression.export.writer import Entry, shards, write_file
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.tiny_models import tiny_bert, tiny_llama

SPECIFICATION: dict[str, Any] = {
    "model": "mdl_1",
    "recipe": "magnitude",
    "target": {"sparsity": 0.5},
    "structure": {"granularity": "2:4", "ignore": []},
    "recovery": {"method": "none"},
    "metadata": {"team": "search"},
    "limits": {"seconds": 60},
    "seed": 3,
}


def prune_two_of_four(folder: Path) -> dict[str, Tensor]:
    """Zero two of every four weights of each projection, in place; the masks."""
    weights = load_file(folder / "model.safetensors")
    masks = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and ("_proj" in name or "dense" in name) and "pooler" not in name:
            groups = weight.abs().view(weight.shape[0], -1, 4)
            order = groups.argsort(dim=-1, descending=True, stable=True)
            mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :2], True)
            masks[name] = mask.view(weight.shape)
            weights[name] = torch.where(masks[name], weight, 0.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return masks


def inputs(folder: Path, source: Path, masks: Mapping[str, Tensor], task: str = GENERATION) -> ArtifactInputs:
    return ArtifactInputs(
        folder=folder,
        source=WeightReader(source),
        settings=json.loads((source / "config.json").read_text()),
        copy_from=source,
        task=task,
        specification=SPECIFICATION,
        model_files={"model.safetensors": "a" * 64},
        datasets={},
        versions={"secateur": "0.1.0"},
        figures={
            "cost": {
                "dense": {"parameters": 10, "nonzeros": 10, "bytes": 40, "macs": 9},
                "pruned": {"parameters": 10, "nonzeros": 5, "bytes": 40, "macs": 9},
            },
            "quality": {"dense": {"perplexity": 3.0}, "pruned": {"perplexity": None}},
        },
        recipe_title="Magnitude",
        masks=masks,
    )


def expected_file(root: Path, folder: Path, task: str = GENERATION) -> Path:
    ids = torch.randint(5, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    outputs = list(StreamedModel(folder).outputs(batches))
    return probe.write_inputs(root / "expected.safetensors", batches, outputs, task)


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    folder = tiny_llama(tmp_path / "pruned", tied=True)
    return folder, prune_two_of_four(folder)


@pytest.fixture
def artifact(tmp_path: Path, pruned: tuple[Path, dict[str, Tensor]]) -> Artifact:
    return write_artifact(inputs(tmp_path / "artifact", *pruned))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    again = write_artifact(inputs(tmp_path / "elsewhere", *pruned))
    assert contents(artifact.folder) == contents(again.folder)
    assert artifact.manifest == again.manifest


def test_the_artifact_holds_what_the_manifest_lists(artifact: Artifact) -> None:
    files = set(contents(artifact.folder))
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "secateur/masks.safetensors",
        "secateur/manifest.json",
    } == files
    assert {entry["path"] for entry in artifact.files} == files
    assert {entry["path"] for entry in artifact.manifest["files"]} == files - {"secateur/manifest.json"}
    assert artifact.bytes == sum(len(data) for data in contents(artifact.folder).values())
    assert "metadata" not in artifact.manifest["specification"]
    assert "limits" not in artifact.manifest["specification"]


def test_untouched_tensors_keep_their_bytes(
    artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned[0], artifact.folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_card_says_how_to_load_and_what_it_is_not(artifact: Artifact) -> None:
    card = (artifact.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "| non-zeros | 10 | 5 | 0.500 |" in card
    assert "| perplexity | 3 | not finite |" in card
    assert "not faster" in card


def test_a_folder_with_something_in_it_is_not_written_to(
    artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    with pytest.raises(FileExistsError):
        write_artifact(inputs(artifact.folder, *pruned))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_written_weights_are_read_by_the_library(tmp_path: Path, dtype: str) -> None:
    source = tiny_llama(tmp_path / "m", dtype=dtype)
    write_model(tmp_path / "out", WeightReader(source), {"num_hidden_layers": 2}, source)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m", layers=3, shards=2)
    settings = json.loads((source / "config.json").read_text())
    seen: list[tuple[int, int]] = []
    write_model(
        tmp_path / "out",
        WeightReader(source),
        settings,
        source,
        shard_bytes=40_000,
        after_file=lambda done, total: seen.append((done, total)),
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert seen == [(n, len(files)) for n in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files}
    model, info = stock.load_with_info(tmp_path / "out", GENERATION)
    assert not any(info.values())
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in model.parameters())
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        first = stock.answer(stock.load(source, GENERATION), {"input_ids": ids}, GENERATION)
        assert torch.equal(first, stock.answer(model, {"input_ids": ids}, GENERATION))
    reader = WeightReader(source)
    assert WrittenModel(reader).bytes > 0


def test_a_tensor_larger_than_a_shard_is_alone() -> None:
    entries = [Entry(str(n), torch.float32, (size,)) for n, size in enumerate([10, 1000, 10, 10])]
    assert [[entry.name for entry in part] for part in shards(entries, 100)] == [["0"], ["1"], ["2", "3"]]


def test_a_tensor_of_another_shape_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has shape"):
        write_file(tmp_path / "x", [Entry("w", torch.float32, (2, 2))], lambda name: torch.zeros(2, 3))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_dropped_layers_give_a_plain_smaller_model(tmp_path: Path, family: str) -> None:
    task = GENERATION if family == "llama" else FEATURES
    make = tiny_llama if family == "llama" else tiny_bert
    source = make(tmp_path / "m", layers=4)  # type: ignore[operator]
    specification = SPECIFICATION | {"structure": {"granularity": "layer"}}
    given = replace(inputs(tmp_path / "artifact", source, {}, task), kept=[0, 3], specification=specification)
    artifact = write_artifact(given)
    assert artifact.manifest["structure"]["layers_kept"] == [0, 3]
    kept = json.loads((artifact.folder / "secateur/kept.json").read_text())
    assert kept["layers"] == [0, 3]
    assert json.loads((artifact.folder / "config.json").read_text())["num_hidden_layers"] == 2
    _, info = stock.load_with_info(artifact.folder, task)
    assert not any(info.values())
    ids = torch.arange(5, 25)[None]
    streamed = StreamedModel(source, keep_layers=[0, 3])
    (outputs,) = streamed.outputs([{"input_ids": ids}])
    expected = probe.write_inputs(tmp_path / "e.safetensors", [{"input_ids": ids}], [outputs], task)
    assert verify.check(artifact.folder, expected)["faults"] == []


def test_settings_per_layer_are_cut() -> None:
    settings = {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "max_window_layers": 3,
        "torch_dtype": "float16",
    }
    found = rewritten_config(settings, [0, 2, 3], torch.bfloat16)
    assert found == {
        "num_hidden_layers": 3,
        "layer_types": ["a", "c", "d"],
        "max_window_layers": 2,
        "dtype": "bfloat16",
    }
    assert rewritten_config({"dtype": "float32"}) == {"dtype": "float32"}


def test_layers_close_up() -> None:
    names = ["model.norm.weight", "model.layers.0.x", "model.layers.10.x", "model.layers.2.x"]
    assert kept_names(names, [0, 10]) == {
        "model.norm.weight": "model.norm.weight",
        "model.layers.0.x": "model.layers.0.x",
        "model.layers.1.x": "model.layers.10.x",
    }


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_masks_come_back_as_they_were(tmp_path: Path, columns: int) -> None:
    mask = torch.rand(5, columns) > 0.5
    assert torch.equal(unpack(pack(mask), columns), mask)
    write_masks(tmp_path / "m.safetensors", {"b": mask, "a": ~mask})
    found = dict(read_masks(tmp_path / "m.safetensors"))
    assert list(found) == ["a", "b"]
    assert torch.equal(found["b"], mask)
    assert torch.equal(found["a"], ~mask)


def test_a_good_artifact_is_verified_in_a_clean_process(
    tmp_path: Path, artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    result = verify.run(artifact.folder, expected_file(tmp_path, pruned[0]))
    assert result["ok"] is True
    assert result["max_abs_difference"] <= 1e-5
    assert result["loader"] == "AutoModelForCausalLM"
    assert result["memory"]["process_bytes"] > 50_000_000


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_verified_too(tmp_path: Path, dtype: str) -> None:
    source = tiny_llama(tmp_path / "m", dtype=dtype)
    artifact = write_artifact(inputs(tmp_path / "a", source, {}))
    assert verify.check(artifact.folder, expected_file(tmp_path, source))["faults"] == []


def test_a_change_of_type_is_verified_against_the_written_weights(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m")
    given = replace(inputs(tmp_path / "a", source, {}), dtype=torch.bfloat16)
    artifact = write_artifact(given)
    assert json.loads((artifact.folder / "config.json").read_text())["dtype"] == "bfloat16"
    ids = torch.arange(5, 25)[None]
    model = StreamedModel(source, dtype=torch.bfloat16)
    outputs = list(model.outputs([{"input_ids": ids}]))
    expected = probe.write_inputs(tmp_path / "e.safetensors", [{"input_ids": ids}], outputs, GENERATION)
    found = verify.check(artifact.folder, expected)
    assert found["faults"] == []
    assert found["dtype"] == "bfloat16"


def damaged(artifact: Artifact, target: Path, name: str, change: float) -> Path:
    """A copy of the artifact with one weight changed and no manifest to notice the file's hash."""
    shutil.copytree(artifact.folder, target)
    weights = load_file(target / "model.safetensors")
    weights[name].view(-1)[int((weights[name] == 0).view(-1).nonzero()[0])] = change
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_one_wrong_weight_is_found_in_every_way(
    tmp_path: Path, artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    name = next(iter(pruned[1]))
    folder = damaged(artifact, tmp_path / "damaged", name, 0.5)
    with pytest.raises(ArtifactVerificationFailed) as caught:
        verify.run(folder, expected_file(tmp_path, pruned[0]))
    message = str(caught.value)
    assert "model.safetensors" in message  # the manifest's hash or size
    assert f"{name} has weights where its mask has none" in message
    assert f"{name} has more than 2 non-zeros in a group of 4" in message
    assert "outputs differ" in message
    assert str(tmp_path) not in message


def test_an_artifact_that_does_not_load_is_not_verified(
    tmp_path: Path, artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    expected = expected_file(tmp_path, pruned[0])
    (artifact.folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactVerificationFailed, match="could not load") as caught:
        verify.run(artifact.folder, expected)
    assert str(tmp_path) not in str(caught.value)


def test_missing_weights_are_named(
    tmp_path: Path, artifact: Artifact, pruned: tuple[Path, dict[str, Tensor]]
) -> None:
    weights = load_file(artifact.folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, artifact.folder / "model.safetensors", metadata={"format": "pt"})
    faults = verify.check(artifact.folder, expected_file(tmp_path, pruned[0]))["faults"]
    assert any("missing keys" in fault and "model.norm.weight" in fault for fault in faults)


def test_a_headless_encoder_may_lack_its_pooler(tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "m", pooler=False)
    artifact = write_artifact(inputs(tmp_path / "a", source, {}, FEATURES))
    found = verify.check(artifact.folder, expected_file(tmp_path, source, FEATURES))
    assert found["faults"] == []


def test_outputs_that_are_not_finite_never_match() -> None:
    bad = torch.tensor([[float("nan"), 1.0]])
    assert verify.compare([bad], [bad])[0] == float("inf")
    assert verify.compare([torch.ones(1, 2)], [torch.ones(1, 3)])[0] == float("inf")
    assert verify.compare([torch.ones(1, 2)], [torch.ones(1, 2) + 5e-6])[0] < 1e-5

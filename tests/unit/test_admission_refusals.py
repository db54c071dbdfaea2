"""Models whose parts do not fit each other: which part, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compression.errors import ArchitectureUnknown, ConfigInvalid, SafetensorsInvalid, TensorsMismatch
from compression.loading.admission import Admission, BytesSource, admit_model, folder_sources
from tests.tiny_models import tiny_llama, write_safetensors


def admitted(folder: Path) -> Admission:
    return admit_model(folder_sources(folder))


def test_unknown_architectures_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureUnknown, match="did you mean 'LlamaForCausalLM'"):
        admitted(tiny_llama(tmp_path, config={"architectures": ["LLamaForCausalLm"]}))
    with pytest.raises(ArchitectureUnknown, match="BertModel"):
        admitted(tiny_llama(tmp_path, config={"architectures": ["GPTJForCausalLM"]}))


def edit_tensors(folder: Path, change: Any) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    edit_tensors(tiny_llama(tmp_path), lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(TensorsMismatch, match=r"needs the weight 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        admitted(tmp_path)


def test_a_misnamed_weight_is_recognised(tmp_path: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.upproj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    edit_tensors(tiny_llama(tmp_path), rename)
    with pytest.raises(TensorsMismatch, match=r"hold 'model\.layers\.1\.mlp\.upproj\.weight' instead"):
        admitted(tmp_path)


def test_masks_of_pruning_are_recognised(tmp_path: Path) -> None:
    def leave(tensors: dict[str, Any]) -> None:
        weight = tensors.pop("model.layers.1.mlp.up_proj.weight")
        tensors["model.layers.1.mlp.up_proj.weight_orig"] = weight
        tensors["model.layers.1.mlp.up_proj.weight_mask"] = weight

    edit_tensors(tiny_llama(tmp_path), leave)
    with pytest.raises(TensorsMismatch, match=r"not multiplied in.*secateur convert FOLDER OUT"):
        admitted(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(
        TensorsMismatch, match=r"gate_proj\.weight' has the shape \[64, 32\], .* must be \[48, 32\]"
    ):
        admitted(tmp_path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(1, "holds 'model.layers.1.*num_hidden_layers = 1"), (3, r"needs the weight 'model.layers.2")],
)
def test_a_wrong_number_of_layers_is_named(layers: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(TensorsMismatch, match=message):
        admitted(tiny_llama(tmp_path, config={"num_hidden_layers": layers}))


def test_an_unknown_weight_is_named(tmp_path: Path) -> None:
    edit_tensors(tiny_llama(tmp_path), lambda tensors: tensors.update(adapter=tensors["model.norm.weight"]))
    with pytest.raises(TensorsMismatch, match="knows no weight 'adapter'"):
        admitted(tmp_path)


def test_a_tied_head_must_not_be_missing_when_untied(tmp_path: Path) -> None:
    with pytest.raises(TensorsMismatch, match=r"needs the weight 'lm_head\.weight'"):
        admitted(tiny_llama(tmp_path, tied=True, config={"tie_word_embeddings": False}))


def test_old_buffers_are_tolerated_whatever_their_type(tmp_path: Path) -> None:
    import numpy as np

    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(tiny_llama(tmp_path), lambda tensors: tensors.update({name: np.arange(4)}))
    assert admitted(tmp_path).parameters == admitted(tiny_llama(tmp_path / "b")).parameters


def test_wrong_types_are_named(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    path = tiny_llama(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    for kind, code in (("int8", "I8"), ("int64", "I64"), ("float64", "F64"), ("bool", "BOOL")):
        save_file({**tensors, "model.norm.weight": np.ones(32, kind)}, path)
        with pytest.raises(
            TensorsMismatch, match=rf"'model\.norm\.weight' has the type {code}; weights must be F32, BF16"
        ):
            admitted(tmp_path)


def test_shards_and_index(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    names = list(good["weight_map"])
    first, second = sorted(set(good["weight_map"].values()))

    def refused(change: dict[str, Any], match: str) -> None:
        index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], **change}}))
        with pytest.raises(SafetensorsInvalid, match=match):
            admitted(folder)

    refused({names[0]: second}, "should lie in")
    refused({"ghost": first}, "'ghost' should lie in")
    refused({names[0]: "other.safetensors"}, "was not uploaded")
    refused({names[0]: 3}, "no name of a safetensors file")
    missing = {key: value for key, value in good["weight_map"].items() if key != names[0]}
    index.write_text(json.dumps({"weight_map": missing}))
    with pytest.raises(SafetensorsInvalid, match="is not listed"):
        admitted(folder)
    index.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(SafetensorsInvalid, match="weight_map"):
        admitted(folder)
    index.unlink()
    with pytest.raises(SafetensorsInvalid, match="index"):
        admitted(folder)
    index.write_text(json.dumps(good))
    shutil.copy(folder / first, folder / "model.safetensors")
    with pytest.raises(SafetensorsInvalid, match="not named in"):
        admitted(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, shards=2)
    first, second = sorted(folder.glob("model-*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(SafetensorsInvalid, match="is both in"):
        admitted(folder)


def test_what_must_be_there(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    sources = folder_sources(folder)
    with pytest.raises(ConfigInvalid, match=r"config\.json is missing"):
        admit_model({name: source for name, source in sources.items() if name != "config.json"})
    with pytest.raises(SafetensorsInvalid, match="No weights"):
        admit_model({name: source for name, source in sources.items() if name != "model.safetensors"})
    renamed = {
        ("weights.safetensors" if name == "model.safetensors" else name): it for name, it in sources.items()
    }
    with pytest.raises(SafetensorsInvalid, match=r"must be called model\.safetensors"):
        admit_model(renamed)
    below = {**sources, "sub/model.safetensors": BytesSource(b"")}
    with pytest.raises(SafetensorsInvalid, match=r"beside config\.json"):
        admit_model(below)

"""Every architecture against the stock classes: tensors, settings, outputs, sizes, multiply-accumulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from compression.anatomy import Inspection, count_macs, layer_of
from compression.anatomy.families import DECODERS, ENCODERS, FAMILIES, architectures
from compression.anatomy.inspection import is_buffer
from compression.evaluation import stock
from compression.evaluation.cost import cost
from compression.evaluation.macs import counted_macs
from compression.evaluation.types import TEXT_TO_TEXT
from compression.export.model import write_model
from compression.export.verify import key_faults
from compression.loading.admission import Admission, admit_model, folder_sources
from compression.loading.architectures import ARCHITECTURES
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.tiny_families import CASES, IMAGES, architecture_of, tiny_family, tiny_model

ENCODER_CASES = [case for case in CASES if architectures()[architecture_of(case)].name in ENCODERS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {case: tiny_family(root / case, case) for case in CASES}


def admitted(folder: Path) -> Admission:
    return admit_model(folder_sources(folder))


def rewritten(folder: Path, target: Path) -> Path:
    """The folder as it is stored once it is taken in: its weights with the rewritten config."""
    target.mkdir()
    for path in folder.glob("*.safetensors"):
        (target / path.name).write_bytes(path.read_bytes())
    (target / "config.json").write_bytes(admitted(folder).rewritten["config.json"])
    return target


def batches(padded: bool, targets: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made: list[dict[str, torch.Tensor]] = []
    for rows, length in ((3, 40), (2, 17)):
        made.append({})
        for side, tokens in (("", length), ("decoder_", length - 7))[: 1 + targets]:
            ids = torch.randint(3, 131, (rows, tokens), generator=generator)
            made[-1][f"{side}input_ids"] = ids
            if padded:
                mask = torch.ones_like(ids)
                mask[0, 9:] = 0
                made[-1][f"{side}attention_mask"] = mask
    return made


def prunable(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer of a block that is pruned: all but the gate of a shared expert."""
    return isinstance(module, torch.nn.Linear | Conv1D) and module.weight.shape[0] > 1


def is_experts(module: torch.nn.Module) -> bool:
    return type(module).__name__.endswith("Experts")


def expert_weights(module: torch.nn.Module) -> list[int]:
    """Sizes of gate, up and down of every expert of a layer."""
    size = module.down_proj[0].numel()
    return [size] * (3 * module.num_experts)


def assert_like_stock(folder: Path, task: str, padded: bool = False) -> None:
    model, info = stock.load_with_info(folder, task)
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    made = batches(padded, targets=task == TEXT_TO_TEXT)
    found = list(StreamedModel(folder).outputs(made))
    for batch, output in zip(made, found, strict=True):
        with torch.no_grad():
            wanted = stock.answer(model, batch, task)
        assert (output - wanted).abs().max() <= 1e-5


def test_the_table_is_complete() -> None:
    assert set(ARCHITECTURES) == set(architectures()) == {architecture_of(case) for case in (*CASES, *IMAGES)}
    assert {*DECODERS, *ENCODERS} == {family.name for family in FAMILIES}
    for name in architectures():
        task = architectures()[name].architectures[name].task
        assert (architectures()[name].name in DECODERS) == (task == "text-generation")


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_the_file(case: str, folders: dict[str, Path]) -> None:
    found = admitted(folders[case])
    expected = architectures()[architecture_of(case)].expected(found.config, found.tensors)
    stored = load_file(folders[case] / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in stored.items()} == expected.required
    assert not any(map(is_buffer, stored))
    assert all(is_buffer(name) or "pooler" in name for name in expected.buffers)
    assert sum(count for _, count, _ in expected.lists) == found.inspection["layers"]
    sites = Inspection.from_json(json.loads(json.dumps(found.inspection))).sites
    for site in sites:
        shape = tuple(stored[site.name].shape)
        assert site.shape == (shape[::-1] if site.transposed else shape)
        before = found.config["num_layers"] if site.name.startswith("decoder.block") else 0
        assert layer_of(site.name) == site.layer - before


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_sites_are_those_of_the_model(case: str, folders: dict[str, Path]) -> None:
    found = admitted(folders[case])
    inspection = Inspection.from_json(found.inspection)
    model = tiny_model(case)
    assert found.parameters == inspection.parameters == sum(value.numel() for value in model.parameters())
    lists = [model.get_submodule(name) for name in ARCHITECTURES[architecture_of(case)].lists(model)]
    modules = [module for blocks in lists for module in blocks.modules()]
    linears = [module for module in modules if prunable(module)]
    weights = [item.weight.numel() for item in linears] + [
        size for module in modules if is_experts(module) for size in expert_weights(module)
    ]
    assert inspection.layers == sum(map(len, lists))
    assert sorted(site.size for site in inspection.sites) == sorted(weights)
    assert all(site.transposed == isinstance(linears[0], Conv1D) for site in inspection.sites)
    assert inspection.layer_parameters == sum(value.numel() for value in lists[0][-1].parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_rewritten_config_means_the_same_model(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    task = admitted(folders[case]).task
    before = stock.load(folders[case], task)
    after = stock.load(rewritten(folders[case], tmp_path / "a"), task)
    for batch in batches(padded=False, targets=task == TEXT_TO_TEXT):
        with torch.no_grad():
            assert torch.equal(stock.answer(before, batch, task), stock.answer(after, batch, task))
    kept = after.config.to_dict()
    for key, value in before.config.to_dict().items():
        if key in admitted(folders[case]).config:
            assert kept[key] == value, key


@pytest.mark.parametrize("case", CASES)
def test_the_rewritten_config_is_rewritten_to_itself(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    again = admitted(rewritten(folders[case], tmp_path / "a"))
    assert again.config == admitted(folders[case]).config
    assert not again.dropped


@pytest.mark.parametrize("case", CASES)
def test_streamed_outputs(case: str, folders: dict[str, Path]) -> None:
    assert_like_stock(folders[case], admitted(folders[case]).task)


@pytest.mark.parametrize("case", CASES)
def test_streamed_outputs_with_padding(case: str, folders: dict[str, Path]) -> None:
    assert_like_stock(folders[case], admitted(folders[case]).task, padded=True)


def sequence(inspection: Inspection, length: int) -> dict[str, torch.Tensor]:
    """One sequence, with a target of the same length where there is a decoder."""
    found = {"input_ids": torch.full((1, length), 5)}
    return {**found, "decoder_input_ids": found["input_ids"]} if inspection.cross_layers else found


@pytest.mark.parametrize("case", CASES)
def test_macs(case: str, folders: dict[str, Path]) -> None:
    """The products of all linear layers, seen by hooks, and those of the attention by hand."""
    inspection = Inspection.from_json(admitted(folders[case]).inspection)
    model = tiny_model(case)
    seen: list[int] = []

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen.append(inputs[0].shape[:-1].numel() * module.weight.numel())

    def routed(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen.append(inputs[1].numel() * sum(expert_weights(module)) // module.num_experts)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) or type(module).__name__.endswith("Router"):
            module.register_forward_hook(hook)
        elif is_experts(module):
            module.register_forward_hook(routed)
    with torch.no_grad():
        model(**sequence(inspection, 11))
    squares = inspection.layers + inspection.cross_layers
    attention = 2 * squares * inspection.heads * inspection.head_dim * 11 * 11
    assert count_macs(inspection, 11).total == sum(seen) + attention


@pytest.mark.parametrize("case", CASES)
def test_macs_as_torch_dispatches_them(case: str, folders: dict[str, Path]) -> None:
    found = admitted(folders[case])
    loader = getattr(transformers, stock.loader_name(found.task, [found.architecture]))
    model = loader.from_pretrained(folders[case], attn_implementation="eager")
    if found.family == "moe":
        model.set_experts_implementation("eager")
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            whole = module.forward
            # The angles are the product of positions and frequencies, which the count leaves out.
            module.forward = _uncounted(whole)
    inspection = Inspection.from_json(found.inspection)
    counted = counted_macs(model, sequence(inspection, 13), found.task)
    assert count_macs(inspection, 13).total == counted


def _uncounted(forward: Any) -> Any:
    from torch.utils._python_dispatch import _disable_current_modes

    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return forward(*args, **kwargs)

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_model_without_a_layer(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    found = admitted(folders[case])
    if "layer" not in found.inspection["granularities"]:
        assert case == "GPT2LMHeadModel-inverse" or "T5" in case
        return
    kept = [0, 2]
    write_model(tmp_path / "a", WeightReader(folders[case]), found.config, folders[case], kept=kept)
    model, info = stock.load_with_info(tmp_path / "a", found.task)
    assert not any(info.values()), info
    shorter = admitted(tmp_path / "a")
    assert shorter.inspection["layers"] == 2
    assert shorter.parameters == found.parameters - found.inspection["layer_parameters"]
    streamed = StreamedModel(folders[case], keep_layers=kept)
    for batch, output in zip(batches(False), streamed.outputs(batches(False)), strict=True):
        with torch.no_grad():
            assert (stock.answer(model, batch, found.task) - output).abs().max() <= 1e-5


BASES = {
    "LlamaForCausalLM-tied": "model.",
    "Qwen3ForCausalLM-windows": "model.",
    "OPTForCausalLM": "model.",
    "GPT2LMHeadModel": "transformer.",
    "BloomForCausalLM": "transformer.",
    "FalconForCausalLM": "transformer.",
    "BertModel": "bert.",
    "RobertaModel": "roberta.",
    "DistilBertModel": "distilbert.",
}


@pytest.mark.parametrize("case", BASES)
def test_names_with_and_without_the_name_of_the_base_model(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = BASES[case]
    tensors = load_file(folders[case] / "model.safetensors")
    bare = not any(name.startswith(base) for name in tensors)
    renamed = {base + name if bare else name.removeprefix(base): value for name, value in tensors.items()}
    (tmp_path / "config.json").write_text((folders[case] / "config.json").read_text())
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = admitted(tmp_path)
    assert found.parameters == admitted(folders[case]).parameters
    assert {site["name"] for site in found.inspection["sites"]} < set(renamed)
    assert_like_stock(tmp_path, found.task)


OLD_BUFFERS = {
    "GPT2LMHeadModel": {"attn.bias": (1, 1, 64, 64)},
    "GPTNeoXForCausalLM": {
        "attention.bias": (1, 1, 64, 64),
        "attention.masked_bias": (),
        "attention.rotary_emb.inv_freq": (2,),
    },
    "LlamaForCausalLM": {"self_attn.rotary_emb.inv_freq": (4,)},
}
BUFFER_TYPES = {"attention.bias": torch.bool}


@pytest.mark.parametrize("case", OLD_BUFFERS)
def test_buffers_of_old_checkpoints(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders[case] / "model.safetensors")
    prefix = admitted(folders[case]).inspection["layer_prefix"]
    for layer in range(3):
        for name, shape in OLD_BUFFERS[case].items():
            tensors[f"{prefix}{layer}.{name}"] = torch.zeros(shape, dtype=BUFFER_TYPES.get(name))
    (tmp_path / "config.json").write_text((folders[case] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = admitted(tmp_path)
    assert found.parameters == admitted(folders[case]).parameters
    counted = cost(
        WeightReader(tmp_path), Inspection.from_json(found.inspection), sequence_length=8, weight_bytes=1
    )
    assert counted["parameters"] == found.parameters
    assert not any(stock.load_with_info(tmp_path, found.task)[1].values())
    assert_like_stock(tmp_path, found.task)


@pytest.mark.parametrize("which", ["both", "copy"])
def test_the_copy_of_the_table_of_t5(which: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["T5EncoderModel"] / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    if which == "copy":
        del tensors["shared.weight"]
    (tmp_path / "config.json").write_text((folders["T5EncoderModel"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = admitted(tmp_path)
    assert found.parameters == admitted(folders["T5EncoderModel"]).parameters
    inspection = Inspection.from_json(found.inspection)
    assert inspection.tied == ("encoder.embed_tokens.weight" if which == "copy" else "shared.weight", *{
        "copy": ["shared.weight"], "both": ["encoder.embed_tokens.weight"]}[which])  # fmt: skip
    counted = cost(WeightReader(tmp_path), inspection, sequence_length=8, weight_bytes=1)
    assert counted["parameters"] == found.parameters
    assert_like_stock(tmp_path, found.task)


def test_a_classifier_that_kept_the_pooler_of_its_base(folders: dict[str, Path], tmp_path: Path) -> None:
    case = "RobertaForSequenceClassification"
    tensors = load_file(folders[case] / "model.safetensors")
    tensors |= {
        "roberta.pooler.dense.weight": torch.ones(32, 32),
        "roberta.pooler.dense.bias": torch.ones(32),
    }
    (tmp_path / "config.json").write_text((folders[case] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = admitted(tmp_path)
    inspection = Inspection.from_json(found.inspection)
    counted = cost(WeightReader(tmp_path), inspection, sequence_length=8, weight_bytes=1)
    assert counted["parameters"] == found.parameters == admitted(folders[case]).parameters
    assert key_faults(stock.load_with_info(tmp_path, found.task)[1], found.task) == []
    assert_like_stock(tmp_path, found.task)


def test_the_old_name_of_a_head(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["GPTNeoXForCausalLM"] / "model.safetensors")
    other = "lm_head.weight" if "embed_out.weight" in tensors else "embed_out.weight"
    tensors[other] = tensors.pop(
        next(name for name in ("lm_head.weight", "embed_out.weight") if name in tensors)
    )
    (tmp_path / "config.json").write_text((folders["GPTNeoXForCausalLM"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_like_stock(tmp_path, admitted(tmp_path).task)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.endswith("-tied") or case in ("GPT2LMHeadModel", "OPTForCausalLM")],
)
def test_a_tied_head_is_counted_once(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    found = admitted(folders[case])
    table, *copies = Inspection.from_json(found.inspection).tied
    assert copies
    tensors = load_file(folders[case] / "model.safetensors")
    tensors |= {copy: tensors[table].clone() for copy in copies}
    (tmp_path / "config.json").write_text((folders[case] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = admitted(tmp_path)
    inspection = Inspection.from_json(again.inspection)
    assert again.parameters == found.parameters
    counted = cost(WeightReader(tmp_path), inspection, sequence_length=8, weight_bytes=1)
    assert counted["parameters"] == found.parameters
    assert_like_stock(tmp_path, found.task)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["GPT2LMHeadModel", "Gemma3ForCausalLM", "BloomForCausalLM", "RobertaModel"])
def test_narrow_types(case: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(case).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    task = admitted(tmp_path).task
    model = stock.load(tmp_path, task)
    for batch, output in zip(batches(False), StreamedModel(tmp_path).outputs(batches(False)), strict=True):
        with torch.no_grad():
            assert torch.equal(stock.answer(model, batch, task), output)

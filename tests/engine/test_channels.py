"""Models with fewer hidden channels are stock models: masked = removed, turned = dense, in every family."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from compression.anatomy import Inspection
from compression.anatomy.families import FAMILIES, family_of
from compression.anatomy.residual import Stream
from compression.evaluation.types import TensorSource
from compression.export.model import write_model
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from compression.residual_surgery import StreamSource
from compression.surgery import CutSource, cuts_of
from tests.tiny_families import CASES, IMAGES, architecture_of, tiny_family

HIDDEN = 32
TOKENS = torch.arange(3, 3 + 2 * 9).reshape(2, 9)
OFFERED = [case for case in CASES if not family_of(architecture_of(case)).keeps_hidden]
TURNED = [case for case in OFFERED if not case.startswith(("Gemma2", "Gemma3"))]
# One of each form of layer; the others differ from them in what has no hidden axis.
USUAL = (
    "LlamaForCausalLM", "LlamaForCausalLM-tied", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "GemmaForCausalLM-untied", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "MixtralForCausalLM-tied",
    "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
)  # fmt: skip


def _marked(cases: Sequence[str]) -> list[Any]:
    return [case if case in USUAL else pytest.param(case, marks=pytest.mark.slow) for case in cases]


class Doubled:
    """The tensors of a source in float64, so that what a rule leaves of rounding is seen."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.names, self.shape = source.names, source.shape

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(name).double()


class Narrow:
    """A tiny model, its residual stream, and what writes it with other channels."""

    def __init__(self, folder: Path, case: str, **changes: Any) -> None:
        self.folder = folder
        self.dense = tiny_family(folder / "dense", case, **changes)
        admission = admit_model(folder_sources(self.dense))
        self.config = admission.config
        self.inspection = Inspection.from_json(admission.inspection)
        self.family = family_of(admission.architecture)
        self.reader = WeightReader(self.dense)
        self.stream: Stream = self.family.stream(self.config, self.reader.names())

    def small(self, kept: Tensor, basis: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Path:
        """The folder of the model with these channels (of the basis)."""
        config = self.family.resized(self.config, {"hidden": len(kept)})
        if basis is not None:
            config["tie_word_embeddings"] = False
        source = StreamSource(Doubled(self.reader), self.stream, kept, basis)
        folder = self.folder / f"small-{len(kept)}-{basis is None}-{dtype}"
        write_model(folder, source, config, self.dense, dtype=dtype)
        return folder

    def zeroed(self, kept: Tensor, *, dtype: torch.dtype = torch.float32) -> Path:
        """The folder of the dense model with zeros in the place of the other channels."""
        cuts = cuts_of([self.stream.group()], {"hidden.0": kept})
        folder = self.folder / f"zeroed-{len(kept)}-{dtype}"
        source = CutSource(Doubled(self.reader), cuts, zeros=True)
        write_model(folder, source, self.config, self.dense, dtype=dtype)
        return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if dtype == torch.float64:
        _norm_in_float64(model)
    return model.eval()


def _norm_in_float64(model: Any) -> None:
    """Give all RMS norms their formula: the stock ones compute in float32 whatever the model's type."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = getattr(module, "eps", None) or module.variance_epsilon
            weight = module.weight + ("Gemma" in type(module).__name__)
            module.forward = lambda x, weight=weight, epsilon=epsilon: (
                x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
            )


def answers(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return load(folder, dtype)(TOKENS).logits


def some(count: int) -> Tensor:
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(count))
    return order[:count].sort().values


def turn(seed: int = 0) -> Tensor:
    """An orthogonal matrix."""
    drawn = torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0]


def _trains(folder: Path) -> None:
    """One step of gradient descent lowers the loss, with gradients in every parameter."""
    model = load(folder)
    before = model(TOKENS, labels=TOKENS).loss
    before.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
        assert float(model(TOKENS, labels=TOKENS).loss) < float(before)


def _generates(folder: Path) -> None:
    """The cache gives the tokens that are found without it."""
    model = load(folder)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = [
        model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=cache, **options)
        for cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (2, 13)


def _survives_saving(folder: Path, again: Path) -> None:
    load(folder).save_pretrained(again)
    assert torch.equal(answers(folder), answers(again))


@pytest.mark.parametrize("case", _marked(OFFERED))
def test_masked_is_removed(case: str, tmp_path: Path) -> None:
    narrow = Narrow(tmp_path, case)
    for count in (12, 28):
        kept = some(count)
        small = narrow.small(kept)
        found, wanted = answers(small), answers(narrow.zeroed(kept))
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))
        assert not torch.allclose(found, answers(narrow.dense), rtol=0, atol=1e-2)
        exact = answers(narrow.small(kept, dtype=torch.float64), torch.float64)
        zeroed = answers(narrow.zeroed(kept, dtype=torch.float64), torch.float64)
        # Gemma's scale of embeddings is rounded to float32 in float64 models too.
        assert torch.allclose(exact, zeroed, rtol=0, atol=1e-6)
    config = json.loads((small / "config.json").read_text())
    assert (config["hidden_size"], config["head_dim"]) == (28, narrow.inspection.head_dim)
    again = Inspection.from_json(admit_model(folder_sources(small)).inspection)
    assert again.hidden == 28
    _generates(small)
    _trains(small)
    _survives_saving(small, tmp_path / "again")


@pytest.mark.parametrize("case", _marked(TURNED))
def test_turned_is_dense(case: str, tmp_path: Path) -> None:
    narrow = Narrow(tmp_path, case)
    everything, basis = torch.arange(HIDDEN), turn()
    turned = narrow.small(everything, basis)
    assert torch.allclose(answers(turned), answers(narrow.dense), rtol=0, atol=1e-5)
    exact = answers(narrow.small(everything, basis, dtype=torch.float64), torch.float64)
    assert torch.allclose(exact, answers(narrow.dense, torch.float64), rtol=0, atol=1e-6)
    admit_model(folder_sources(turned))
    _generates(turned)


def projected(folder: Path, basis: Tensor) -> Tensor:
    """The dense model in float64, of which whatever enters the residual stream is projected onto the span of
    the columns of a basis."""
    model, onto = load(folder, torch.float64), basis @ basis.T
    writers = [model.get_input_embeddings()]
    for layer in model.model.layers:
        writers += [layer.self_attn.o_proj, layer.mlp]
    for module in writers:
        module.register_forward_hook(lambda module, args, output: output @ onto)
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("case", _marked(TURNED))
def test_turned_and_cut_is_projected(case: str, tmp_path: Path) -> None:
    """Against a reference that turns nothing: the stream is projected wherever it is written."""
    narrow = Narrow(tmp_path, case)
    basis, kept = turn(1), some(20)
    wanted = projected(narrow.dense, basis[:, kept])
    small = narrow.small(kept, basis)
    assert torch.allclose(answers(small).double(), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(wanted, answers(narrow.dense).double(), rtol=0, atol=1e-2)
    exact = answers(narrow.small(kept, basis, dtype=torch.float64), torch.float64)
    assert torch.allclose(exact, wanted, rtol=0, atol=1e-6)
    _trains(small)


def test_which_families_offer_it() -> None:
    assert {family.name for family in FAMILIES if family.offers("hidden")} == {"llama", "gemma", "moe"}
    for case in (*CASES, *IMAGES):
        family = family_of(architecture_of(case))
        if family.keeps_hidden:
            with pytest.raises(NotImplementedError, match=family.keeps_hidden[:20]):
                family.norms({})


def test_only_widths_that_the_config_accepts_are_offered(tmp_path: Path) -> None:
    channels = {
        case: next(one for one in Narrow(tmp_path / case, case).inspection.structures if one.kind == "hidden")
        for case in ("LlamaForCausalLM", "Gemma2ForCausalLM", "MistralForCausalLM")
    }
    even = (4, 8, 12, 16, 20, 24, 28, 32)
    assert channels["LlamaForCausalLM"].counts == channels["Gemma2ForCausalLM"].counts == even
    assert channels["MistralForCausalLM"].counts == ()


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_nothing_cut_changes_no_byte(case: str, tmp_path: Path) -> None:
    narrow = Narrow(tmp_path, case)
    source = StreamSource(narrow.reader, narrow.stream, torch.arange(HIDDEN))
    assert source.names() == narrow.reader.names()
    assert all(torch.equal(source.tensor(name), narrow.reader.tensor(name)) for name in source.names())
    assert (
        narrow.family.resized(narrow.config, {"hidden": HIDDEN})["rms_norm_eps"]
        == (narrow.config["rms_norm_eps"])
    )


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    narrow = Narrow(tmp_path, "GemmaForCausalLM")
    source = StreamSource(
        CutSource(WeightReader(narrow.small(torch.arange(HIDDEN), dtype=torch.bfloat16)), {}),
        narrow.stream, some(16), turn(),
    )  # fmt: skip
    for name in source.names():
        tensor = source.tensor(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (source.dtype(name), source.shape(name))
        assert tensor.dtype == torch.bfloat16


def test_the_head_of_old_files_that_store_a_tied_copy(tmp_path: Path) -> None:
    """A stored copy of a tied head is cut as the embeddings are, and is the head where they part."""
    narrow = Narrow(tmp_path, "Qwen2ForCausalLM")
    tensors = {name: narrow.reader.tensor(name) for name in narrow.reader.names()}

    class WithCopy:
        def names(self) -> list[str]:
            return [*tensors, "lm_head.weight"]

        def tensor(self, name: str) -> Tensor:
            return tensors["model.embed_tokens.weight" if name == "lm_head.weight" else name]

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.tensor(name).shape)

        def dtype(self, name: str) -> torch.dtype:
            return self.tensor(name).dtype

    stream = narrow.family.stream(narrow.config, WithCopy().names())
    cut = StreamSource(WithCopy(), stream, some(16))
    assert torch.equal(cut.tensor("lm_head.weight"), cut.tensor("model.embed_tokens.weight"))
    turned = StreamSource(WithCopy(), stream, some(16), turn())
    wanted = StreamSource(narrow.reader, narrow.stream, some(16), turn())
    assert torch.equal(turned.tensor("lm_head.weight"), wanted.tensor("lm_head.weight"))
    assert turned.names() == wanted.names()


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    narrow = Narrow(tmp_path, "LlamaForCausalLM-tied")
    small = narrow.small(some(20), turn())
    code = (
        "import sys, numpy, torch, transformers; "
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval(); "
        "numpy.save(sys.argv[2], model(torch.arange(3, 21).reshape(2, 9)).logits.detach().numpy())"
    )
    told = tmp_path / "logits.npy"
    subprocess.run([sys.executable, "-c", code, small, told], capture_output=True, check=True)
    assert np.allclose(np.load(told), answers(small).numpy(), rtol=0, atol=1e-6)

"""A stream that every norm reads in a basis of its own: turned = dense, cut = projected, and the bases
themselves, against stock models in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.block_pruning import StructureSettings
from compression.checkpoint import Store
from compression.evaluation import stock
from compression.export.model import write_model
from compression.export.per_layer.layout import skip_settings, stock_settings
from compression.layer_rotations import LayerStreamSource, RotationPruner, norms_in_order
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from tests.engine.jobs import Recorder
from tests.engine.test_channel_pruning import _batches
from tests.engine.test_channels import HIDDEN, TOKENS, Doubled, Narrow, _norm_in_float64, answers, load, turn

CASES = (
    "LlamaForCausalLM", "LlamaForCausalLM-tied", "MistralForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "GemmaForCausalLM",
)  # fmt: skip


class Sliced(Narrow):
    """A tiny model, and what writes it with bases of each norm's own."""

    def sliced(self, width: int, bases: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
        config = self.family.resized(self.config, {"hidden": width})
        config["tie_word_embeddings"] = False
        source = LayerStreamSource(Doubled(self.reader), self.stream, width, bases)
        folder = self.folder / f"sliced-{width}-{dtype}"
        write_model(folder, source, skip_settings(config), self.dense, dtype=dtype)
        return folder

    def bases(self) -> dict[str, Tensor]:
        return {norm: turn(place) for place, norm in enumerate(norms_in_order(self.stream))}


def packaged(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, info = stock.load_with_info(folder, "text-generation", dtype=dtype)
    assert not any(info.values())
    model.config._attn_implementation = "eager"
    if dtype == torch.float64:
        _norm_in_float64(model)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


class Projected:
    """The dense model in float64, layer by layer, whose stream is projected before every norm."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder, torch.float64)

    def walk(self, tokens: Tensor, project: Any) -> Tensor:
        """Logits; `project(place, stream)` gives what takes the stream's place before norm number `place`."""
        inner, place = self.model.model, iter(range(99))
        stream = inner.embed_tokens(tokens)
        if "gemma" in self.model.config.model_type and not hasattr(inner.embed_tokens, "embed_scale"):
            stream = stream * torch.tensor(self.model.config.hidden_size**0.5)
        positions = torch.arange(tokens.shape[1])[None]
        rotary = inner.rotary_emb(stream, positions)
        for layer in inner.layers:
            stream = project(next(place), stream)
            stream = stream + layer.self_attn(
                layer.input_layernorm(stream),
                position_embeddings=rotary,
                attention_mask=self._mask(layer, tokens.shape[1]),
            )[0]  # fmt: skip
            stream = project(next(place), stream)
            stream = stream + layer.mlp(layer.post_attention_layernorm(stream))
        return self.model.lm_head(inner.norm(project(next(place), stream)))

    def _mask(self, layer: Any, length: int) -> Tensor:
        """Float64 [1, 1, s, s]: minus infinity for what comes later, or long before where there is a
        window."""
        config = self.model.config
        window = getattr(layer.self_attn, "sliding_window", None)
        if config.model_type == "mistral":
            window = config.sliding_window
        behind = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (behind < 0) | (behind >= (window or length))
        return torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("case", CASES)
def test_turned_is_dense(case: str, tmp_path: Path) -> None:
    sliced = Sliced(tmp_path, case)
    whole = packaged(sliced.sliced(HIDDEN, sliced.bases()))
    assert torch.allclose(logits(whole), answers(sliced.dense), rtol=0, atol=1e-5)
    exact = packaged(sliced.sliced(HIDDEN, sliced.bases(), torch.float64), torch.float64)
    assert torch.allclose(logits(exact), answers(sliced.dense, torch.float64), rtol=0, atol=1e-6)
    assert stock_settings(skip_settings(sliced.config)) == sliced.config


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_cut_is_projected(case: str, tmp_path: Path) -> None:
    sliced, width = Sliced(tmp_path, case), 20
    bases = sliced.bases()
    spans = [bases[norm][:, :width] @ bases[norm][:, :width].T for norm in norms_in_order(sliced.stream)]
    reference = Projected(sliced.dense)
    dense = answers(sliced.dense, torch.float64)
    assert torch.allclose(reference.walk(TOKENS, lambda place, stream: stream), dense, rtol=0, atol=1e-6)
    wanted = reference.walk(TOKENS, lambda place, stream: stream @ spans[place])
    assert not torch.allclose(wanted, dense, rtol=0, atol=1e-2)
    folder = sliced.sliced(width, bases)
    assert torch.allclose(logits(packaged(folder)).double(), wanted, rtol=0, atol=1e-5)
    exact = packaged(sliced.sliced(width, bases, torch.float64), torch.float64)
    assert torch.allclose(logits(exact), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_it_trains_generates_and_is_streamed(case: str, tmp_path: Path) -> None:
    sliced = Sliced(tmp_path, case)
    folder = sliced.sliced(24, sliced.bases())
    model = packaged(folder)
    settings = skip_settings({**sliced.family.resized(sliced.config, {"hidden": 24}),
                              "tie_word_embeddings": False})  # fmt: skip
    (streamed,) = StreamedModel(folder, settings, sliced.config["model_type"]).outputs(
        [{"input_ids": TOKENS}]
    )
    assert torch.allclose(streamed, logits(model), rtol=0, atol=1e-6)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached, plain = (
        model.generate(
            TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=cache, eos_token_id=None, **options
        )
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    before = model(TOKENS, labels=TOKENS).loss
    before.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
        assert float(model(TOKENS, labels=TOKENS).loss) < float(before)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(packaged(tmp_path / "again")), logits(model))


def _reference_bases(folder: Path, width: int) -> list[np.ndarray]:
    """The bases norm after norm, what comes after each being computed from what was projected: sequences one
    by one, without padding."""
    reference, found = Projected(folder), list[np.ndarray]()
    epsilon = reference.model.config.rms_norm_eps
    sequences = [
        ids[mask.bool()][None]
        for batch in _batches()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    count = 2 * len(reference.model.model.layers) + 1
    for place in range(count):
        seen: list[np.ndarray] = []

        def project(number: int, stream: Tensor, place: int = place, seen: Any = seen) -> Tensor:
            if number == place:
                seen.append(stream[0].numpy())
            if number >= place:
                return stream
            return stream @ torch.from_numpy(found[number] @ found[number].T)

        for tokens in sequences:
            with torch.no_grad():
                reference.walk(tokens, project)
        rows = np.concatenate(seen)
        rows = rows / np.sqrt((rows**2).mean(1, keepdims=True) + epsilon)
        left = np.linalg.svd(rows.T)[0]
        found.append(left[:, :width])
    return found


@pytest.mark.parametrize("case", ["Qwen3ForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM-tied"])
def test_the_bases_are_those_of_the_cut_model(case: str, tmp_path: Path) -> None:
    sliced, width = Sliced(tmp_path, case), 12
    store, recorder = Store(tmp_path / "store", "key"), Recorder()
    told: list[tuple[int, int]] = []
    recorder.progress = lambda done, total: told.append((done, total))  # type: ignore[method-assign]

    def model() -> StreamedModel:
        return StreamedModel(sliced.dense, sliced.config, sliced.config["model_type"])

    settings = StructureSettings("activation-energy", {"hidden": width})
    pruner = RotationPruner(
        model, sliced.stream, sliced.reader, settings, _batches(), store, recorder, rotated=True
    )
    facts = pruner.run(sliced.inspection.sites)
    layers = sliced.stream.layers
    found = [store.load("rotation-start")[0]["next"]]
    for layer in range(layers):
        step = store.load(f"rotation-{layer:04d}")[0]
        found += [step["feed_forward"], step["next"]]
    wanted = _reference_bases(sliced.dense, width)
    assert len(found) == len(wanted) == 2 * layers + 1
    for mine, theirs in zip(found, wanted, strict=True):
        basis = mine.numpy()
        assert np.allclose(basis.T @ basis, np.eye(width), rtol=0, atol=1e-12)
        # Directions have no sign of their own: the planes that they span are compared.
        assert np.allclose(basis @ basis.T, theirs @ theirs.T, rtol=0, atol=5e-3)
    assert told == [(step, 2 * layers) for step in range(1, 2 * layers + 1)]
    assert [fact["name"] for fact in facts] == [site.name for site in sliced.inspection.sites]
    assert all(0 < fact["weight_error"] < 1 for fact in facts)
    assert pruner.kept() is None


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    sliced = Sliced(tmp_path, "Qwen3ForCausalLM")
    half = WeightReader(sliced.small(torch.arange(HIDDEN), dtype=torch.bfloat16))
    source = LayerStreamSource(half, sliced.stream, 16, sliced.bases())
    for name in source.names():
        tensor = source.tensor(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (source.dtype(name), source.shape(name))
        assert tensor.dtype == torch.bfloat16

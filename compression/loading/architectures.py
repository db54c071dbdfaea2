"""How the engine runs each architecture: its class in transformers and what is peculiar about it.

Nothing that is not in this table is ever instantiated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Streamed:
    """One architecture. `module` of transformers holds its class, `blocks` are the names of its lists of
    blocks in the order in which they run (`*`: one for each item of a list). `cache`: it would keep keys and
    values unless told not to; `answers`: how many items it takes what a block answers for (0: no tuple);
    `pooler`: it can be built without its pooler. `renames` are parts of names in
    memory and what files call them; `experts` are the names of an expert's gate, up and down weights, where
    the experts of a layer are one parameter in memory. `positions` is the module within the first block that
    makes a bias of relative positions for all blocks of a list: blocks take it as their second argument after
    the hidden states and answer it after them. `memory` is the place, after the hidden states, of the
    argument by which a decoder's blocks are given the encoder's output."""

    module: str
    blocks: tuple[str, ...]
    cache: bool = False
    answers: int = 0
    pooler: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    experts: tuple[str, str, str] | None = None
    positions: str | None = None
    memory: int | None = None

    def lists(self, model: Any) -> list[str]:
        """The names of the lists of blocks in a model."""
        found = []
        for name in self.blocks:
            before, star, after = name.partition("*")
            count = len(model.get_submodule(before.rstrip("."))) if star else 1
            found += [f"{before}{number}{after}" for number in range(count)] if star else [name]
        return found


def _decoder(name: str, blocks: str = "model.layers", answers: int = 0) -> Streamed:
    return Streamed(f"transformers.models.{name}.modeling_{name}", (blocks,), cache=True, answers=answers)


def _experts(name: str) -> Streamed:
    return replace(_decoder(name), experts=("gate_proj", "up_proj", "down_proj"))


def _encoder(name: str, blocks: str, pooler: bool = False) -> Streamed:
    return Streamed(f"transformers.models.{name}.modeling_{name}", (blocks,), pooler=pooler)


def _both(name: str) -> Streamed:
    """An encoder with its decoder."""
    return replace(
        _decoder(name), blocks=("encoder.block", "decoder.block"), answers=3,
        positions="layer.0.SelfAttention", memory=2,
    )  # fmt: skip


# What transformers 5 calls otherwise than files do, which it still writes.
_VIT_NAMES = (
    (".layers.", ".encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)

_SWIN_NAMES = (
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".relative_position_bias.", ".self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)

ARCHITECTURES: dict[str, Streamed] = {
    "LlamaForCausalLM": _decoder("llama"),
    "MistralForCausalLM": _decoder("mistral"),
    "Qwen2ForCausalLM": _decoder("qwen2"),
    "Qwen3ForCausalLM": _decoder("qwen3"),
    "GemmaForCausalLM": _decoder("gemma"),
    "Gemma2ForCausalLM": _decoder("gemma2"),
    "Gemma3ForCausalLM": _decoder("gemma3"),
    "PhiForCausalLM": _decoder("phi"),
    "Phi3ForCausalLM": _decoder("phi3"),
    "OPTForCausalLM": _decoder("opt", "model.decoder.layers"),
    "GPT2LMHeadModel": _decoder("gpt2", "transformer.h"),
    "GPTNeoXForCausalLM": _decoder("gpt_neox", "gpt_neox.layers"),
    "FalconForCausalLM": _decoder("falcon", "transformer.h", answers=1),
    "BloomForCausalLM": _decoder("bloom", "transformer.h", answers=1),
    "MixtralForCausalLM": replace(
        _decoder("mixtral"), renames=((".mlp.", ".block_sparse_moe."),), experts=("w1", "w3", "w2")
    ),
    "Qwen2MoeForCausalLM": _experts("qwen2_moe"),
    "Qwen3MoeForCausalLM": _experts("qwen3_moe"),
    "BertModel": _encoder("bert", "encoder.layer", pooler=True),
    "BertForSequenceClassification": _encoder("bert", "bert.encoder.layer"),
    "RobertaModel": _encoder("roberta", "encoder.layer", pooler=True),
    "RobertaForSequenceClassification": _encoder("roberta", "roberta.encoder.layer"),
    "DistilBertModel": _encoder("distilbert", "transformer.layer"),
    "DistilBertForSequenceClassification": _encoder("distilbert", "distilbert.transformer.layer"),
    "ViTForImageClassification": replace(_encoder("vit", "vit.layers"), renames=_VIT_NAMES),
    "DeiTForImageClassification": replace(_encoder("deit", "deit.layers"), renames=_VIT_NAMES),
    "SwinForImageClassification": replace(
        _encoder("swin", "swin.encoder.layers.*.blocks"), answers=2, renames=_SWIN_NAMES
    ),
    "T5EncoderModel": replace(_encoder("t5", "encoder.block"), answers=3, positions="layer.0.SelfAttention"),
    "T5ForConditionalGeneration": _both("t5"),
    "MT5ForConditionalGeneration": _both("mt5"),
}

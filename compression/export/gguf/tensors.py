"""Which tensors a GGUF file holds, from which stored weights, and how a weight changes on its way there and
back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compression.anatomy.gguf import architecture_of, by_layer, full_rope, head_size
from compression.anatomy.inspection import is_buffer

Change = Literal["none", "rotary", "transpose", "plus_one", "gate", "up", "flat"]

_EXPERT = re.compile(r"(.+\.experts)\.([0-9]{1,4})\.(\w+)\.weight", re.ASCII)
_LAYER = re.compile(r"(?:layers|h)\.([0-9]{1,5})\.(.+)\.(weight|bias)", re.ASCII)

_OUTSIDE = {
    "embed_tokens.weight": "token_embd.weight",
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "norm.weight": "output_norm.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_FOUR_NORMS = _LLAMA | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LAYERS = {"gemma2": _FOUR_NORMS, "gemma3": _FOUR_NORMS, "gpt2": _GPT2}
_EXPERTS = {
    "w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps",
    "gate_proj": "ffn_gate_exps", "down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps",
}  # fmt: skip
# Small, and the router decides; llama.cpp keeps them in float32 whatever the type of the file.
_ALWAYS_FULL = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")


@dataclass(frozen=True)
class Item:
    """A tensor of the file: its name, the stored weights it is made of, and how each changes. Several are
    stacked along a new first axis, which counts experts. `heads` are those of a `rotary` change; `full`:
    float32 always.
    """

    name: str
    sources: tuple[str, ...]
    change: Change = "none"
    heads: int = 0
    full: bool = False


def items(config: Mapping[str, Any], names: Iterable[str]) -> list[Item]:
    """The tensors of the file in its order, from the names of the written model's tensors (in their order).

    Raises KeyError for a name that the architecture does not know.
    """
    found: dict[str, Item] = {}
    experts: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if is_buffer(name) or (name == "lm_head.weight" and config["tie_word_embeddings"]):
            continue
        short = name.removeprefix("model.").removeprefix("transformer.")
        expert = _EXPERT.fullmatch(short)
        if expert:
            layer = _LAYER.fullmatch(short)
            assert layer is not None
            target = f"blk.{layer[1]}.{_EXPERTS[expert[3]]}.weight"
            experts.setdefault(target, []).append((int(expert[2]), name))
            found.setdefault(target, Item(target, ()))
            continue
        for item in _placed(config, short, name):
            found[item.name] = item
    for target, members in experts.items():
        found[target] = Item(target, tuple(name for _, name in sorted(members)))
    return list(found.values())


def _placed(config: Mapping[str, Any], short: str, name: str) -> list[Item]:
    """The tensors that one stored weight becomes."""
    if short in _OUTSIDE:
        return [_item(config, _OUTSIDE[short], name)]
    if short.endswith(".experts.gate_up_proj"):
        block = f"blk.{short.split('.')[1]}"
        return [
            Item(f"{block}.ffn_gate_exps.weight", (name,), "gate"),
            Item(f"{block}.ffn_up_exps.weight", (name,), "up"),
        ]
    if short.endswith(".experts.down_proj"):
        return [Item(f"blk.{short.split('.')[1]}.ffn_down_exps.weight", (name,))]
    layer = _LAYER.fullmatch(short)
    if layer is None:
        raise KeyError(name)
    table = _LAYERS.get(architecture_of(config) or "", _LLAMA)
    return [_item(config, f"blk.{layer[1]}.{table[layer[2]]}.{layer[3]}", name)]


def _item(config: Mapping[str, Any], target: str, name: str) -> Item:
    arch, last = architecture_of(config), target.rsplit(".", 2)[-2]
    change: Change = "none"
    heads = 0
    if arch in ("llama", "deci") and last in ("attn_q", "attn_k"):
        change = "rotary"
        key = "num_attention_heads" if last == "attn_q" else "num_key_value_heads"
        heads = by_layer(config, key)[int(target.split(".")[1])] if arch == "deci" else config[key]
    elif arch in ("gemma", "gemma2", "gemma3") and last.endswith("norm"):
        change = "plus_one"
    elif arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        change = "transpose"
    elif last == "ffn_gate_inp_shexp":
        change = "flat"
    return Item(target, (name,), change, heads, target.endswith(_ALWAYS_FULL))


def forward(item: Item, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor of the file, in the type of the stored weights (norms plus one in float32)."""
    first = read(item.sources[0])
    if len(item.sources) == 1:
        return changed(item, first)
    stacked = torch.empty((len(item.sources), *first.shape), dtype=first.dtype)
    for number, name in enumerate(item.sources):
        stacked[number] = read(name)
    return stacked


def changed(item: Item, weight: Tensor) -> Tensor:
    """A stored weight as the file has it.

    rotary: transformers rotates the pairs (i, i + d/2) of the rows of a head, llama.cpp's `llama` the pairs
    (2i, 2i + 1), so row i of the first half becomes row 2i and row i of the second row 2i + 1. plus_one:
    Gemma multiplies by 1 + weight, llama.cpp by what the file says. gate, up: the first and the second half
    of the rows of every expert.
    """
    if item.change == "rotary":
        rest = weight.shape[1:]
        return weight.reshape(item.heads, 2, -1, *rest).transpose(1, 2).reshape(weight.shape)
    if item.change == "transpose":
        return weight.T
    if item.change == "plus_one":
        return (weight.double() + 1.0).float()
    if item.change == "flat":
        return weight.reshape(-1)
    if item.change in ("gate", "up"):
        half = weight.shape[1] // 2
        return weight[:, :half] if item.change == "gate" else weight[:, half:]
    return weight


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """float32 [head_dim / 2]: what llama.cpp divides each frequency by, for rotary positions of type llama3;
    else None.

    As in transformers: wave lengths above original / low_freq_factor are stretched by `factor`, those below
    original / high_freq_factor are left alone, and between them the frequencies are mixed linearly.
    """
    rope = full_rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size, factor = head_size(config), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    found = []
    for pair in range(size // 2):
        turns = original * rope["rope_theta"] ** (-2 * pair / size) / (2 * math.pi)
        share = 1.0 if turns > high else 0.0 if turns < low else (turns - low) / (high - low)
        found.append(1.0 / (share + (1.0 - share) / factor))
    return torch.tensor(found, dtype=torch.float32)


ROPE_FACTORS = "rope_freqs.weight"

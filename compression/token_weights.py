"""How much each calibration token counts in the statistics (RSQ: Sung et al. 2025, arXiv 2503.01820)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compression.errors import CompressionError
from compression.loading.streamed import Block, States, StreamedModel

# The smallest weight relative to the largest, before normalisation (RSQ, section 4: linear scaling to a
# range).
LOWEST = 0.01
KINDS = ("none", "attention", "norm")


class AttentionHidden(CompressionError):
    """The attention of a model cannot be looked at."""

    code = "attention_unavailable"


def token_weights(
    kind: str, model: StreamedModel, block: Block, states: States, number: int, *, memory: bool = False
) -> Tensor | None:
    """float32 [real tokens of the batch] with mean square 1, or None when all tokens count the same; with
    `memory` of the tokens of the encoder's output, to which a decoder's block attends too (None without one).

    "attention": how much attention a token receives in this block, summed over heads and queries ("attention
    concentration"); "norm": the norm of its hidden state before the block. Both are scaled linearly,
    sequence by sequence, to LOWEST...1.
    """
    given = states.memory if memory else states.hidden
    if kind == "none" or given is None:
        return None
    if kind == "norm":
        values = given[number].to(torch.float32).norm(dim=-1)
    else:
        values = received_attention(model, block, states, number, memory=memory)
    real = states.real_memory(number) if memory else states.real(number)
    mask = torch.ones_like(values, dtype=torch.bool) if real is None else real.to(values.device)
    low = values.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    high = values.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    weights: Tensor = (LOWEST + (1 - LOWEST) * (values - low) / spread)[mask]
    scale: Tensor = weights.square().mean().sqrt()
    return weights / scale


def all_token_weights(
    kind: str, model: StreamedModel, block: Block, states: States, number: int
) -> tuple[Tensor | None, Tensor | None]:
    """Those of the tokens of a batch and those of the encoder's output."""
    own = token_weights(kind, model, block, states, number)
    return own, token_weights(kind, model, block, states, number, memory=True)


def received_attention(
    model: StreamedModel, block: Block, states: States, number: int, *, memory: bool = False
) -> Tensor:
    """float32 [b, s]: attention probabilities that each token receives, summed over heads and real queries;
    with `memory` those that each token of the encoder's output receives from a decoder's block.

    Raises AttentionHidden for a block whose attention does not give its probabilities.
    """
    found: list[Tensor] = []

    def look(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # T5 answers (hidden, bias of positions, probabilities), all others (hidden, probabilities, ...).
        place = 2 if model.positions else 1
        if isinstance(output, tuple) and len(output) > place:
            probabilities = output[place]
            if isinstance(probabilities, Tensor) and probabilities.dim() == 4:
                # A layer around an attention may answer with the same ones again.
                found.extend([probabilities] if all(probabilities is not other for other in found) else [])

    handles = [
        module.register_forward_hook(look)
        for module in block.module.modules()
        if "Attention" in type(module).__name__
    ]
    before = [config._attn_implementation for config in model.configs]
    try:
        for config in model.configs:
            config._attn_implementation = "eager"
        # Every implementation has its own masks (none at all, where a kernel is causal by itself).
        model.run_batch(block, model.alone(states, number), 0)
    finally:
        for config, implementation in zip(model.configs, before, strict=True):
            config._attn_implementation = implementation
        for handle in handles:
            handle.remove()
    if len(found) <= memory:
        raise AttentionHidden(
            f"the attention of {model.architecture} gives no probabilities: use token_weight 'norm' or 'none'"
        )
    probabilities = found[int(memory)].to(torch.float32)
    real = states.real(number)
    if real is not None:
        probabilities = probabilities.masked_fill(~real.to(probabilities.device)[:, None, :, None], 0.0)
    return probabilities.sum(dim=(1, 2))

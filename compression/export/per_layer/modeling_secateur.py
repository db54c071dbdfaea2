"""Stock transformers models whose layers have widths of their own, lack an attention or a feed-forward, have
weights that are products of two thin ones, or read the residual stream in bases of each norm's own.

This file comes with the checkpoint: AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True). It
holds no arithmetic but linear maps, and the sums of skip connections where they have some: each layer is the
stock one, built with what `per_layer_config` of config.json says of it (the format of transformers 5.14 and
later, whose own models do not read it yet), `low_rank` names the linear maps that are products, with their
ranks (with `atoms_per_entry`, the second factor is sparse), and `skip_weights` says that a linear map lies on
every skip connection.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn


class NoAttention(nn.Module):
    """Stands where an attention was removed: adds nothing to the residual."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """Stands where a feed-forward was removed: adds nothing to the residual."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class LowRankLinear(nn.Module):
    """Stands for a linear map whose weight is up.weight @ down.weight."""

    def __init__(self, stock: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(stock.in_features, rank, bias=False)
        self.up = nn.Linear(rank, stock.out_features, bias=stock.bias is not None)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.up(self.down(inputs))
        return result


class SkipWeights:
    """A stock decoder layer with a linear map on each of its two skip connections, from the basis that one
    norm reads the residual stream in into that of the next."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        own: Any = self
        residual = own.attention_skip(hidden_states)
        attended, _ = own.self_attn(hidden_states=own.input_layernorm(hidden_states), **kwargs)
        hidden_states = residual + attended
        residual = own.feed_forward_skip(hidden_states)
        result: Tensor = residual + own.mlp(own.post_attention_layernorm(hidden_states))
        return result


SKIP_CLASSES: dict[str, Any] = {}


def skip_class(stock: Any) -> Any:
    """The class of a stock layer with weights on its skip connections, under the stock name, by which
    transformers knows what must not be split."""
    name = stock.__name__
    return SKIP_CLASSES.setdefault(name, type(name, (SkipWeights, stock), {}))


class SparseCodes(nn.Module):
    """The second factor of a weight that is a dictionary with sparse codes: `values` [out, entries] are what
    each row has, `mask` [out, ceil(rank / 8)] says where, a bit a column, the first lowest."""

    def __init__(self, stock: nn.Linear, rank: int, entries: int) -> None:
        super().__init__()
        rows = stock.out_features
        self.rank = rank
        self.values = nn.Parameter(torch.zeros(rows, entries))
        self.bias = nn.Parameter(torch.zeros(rows)) if stock.bias is not None else None
        self.register_buffer("mask", torch.zeros(rows, -(-rank // 8), dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        mask: Any = self.mask
        bits = mask[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
        places = bits.flatten(1)[:, : self.rank].bool()
        dense = self.values.new_zeros(places.shape).masked_scatter(places, self.values)
        return nn.functional.linear(inputs, dense, self.bias)


class DictionaryLinear(nn.Module):
    """Stands for a linear map whose weight is a dictionary, down.weight, with sparse codes."""

    def __init__(self, stock: nn.Linear, rank: int, entries: int) -> None:
        super().__init__()
        self.down = nn.Linear(stock.in_features, rank, bias=False)
        self.up = SparseCodes(stock, rank, entries)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.up(self.down(inputs))
        return result


class PerLayerConfig:
    """Lets layers say what the class checks for the model as a whole."""

    def validate_architecture(self) -> None:
        """Widths by layer need not divide the hidden width: `head_dim` is said."""


class PerLayerModel:
    """Builds every layer with its own configuration."""

    def __init__(self, config: Any) -> None:
        # While the stock class builds itself, it must not meet numbers that differ by layer.
        widths = config.__dict__.pop("_heterogeneity_spec", None)
        try:
            super().__init__(config)  # type: ignore[call-arg]
        finally:
            if widths is not None:
                config.__dict__["_heterogeneity_spec"] = widths
        if widths is not None:
            self._build_layers(config)
        atoms = getattr(config, "atoms_per_entry", 1)
        for path, rank in (getattr(config, "low_rank", None) or {}).items():
            parent, _, name = path.rpartition(".")
            owner = self.get_submodule(parent)  # type: ignore[attr-defined]
            stock = getattr(owner, name)
            sparse = atoms > 1
            made = DictionaryLinear(stock, rank, rank // atoms) if sparse else LowRankLinear(stock, rank)
            setattr(owner, name, made)
        if getattr(config, "skip_weights", False):
            for layer in self.model.layers:  # type: ignore[attr-defined]
                layer.__class__ = skip_class(type(layer))
                for name in ("attention_skip", "feed_forward_skip"):
                    setattr(layer, name, nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def _build_layers(self, config: Any) -> None:
        layers: Any = self.model.layers  # type: ignore[attr-defined]
        for index, stock in enumerate(layers):
            own = config.per_layer_config[index]
            layers[index] = layer = type(stock)(own, index)
            if "attention" in own.skip:
                layer.self_attn = NoAttention()
            if "mlp" in own.skip:
                layer.mlp = NoFeedForward()


class PerLayerLlamaConfig(PerLayerConfig, transformers.LlamaConfig):
    model_type = "per_layer_llama"


class PerLayerLlamaForCausalLM(PerLayerModel, transformers.LlamaForCausalLM):
    config_class = PerLayerLlamaConfig


class PerLayerMistralConfig(PerLayerConfig, transformers.MistralConfig):
    model_type = "per_layer_mistral"


class PerLayerMistralForCausalLM(PerLayerModel, transformers.MistralForCausalLM):
    config_class = PerLayerMistralConfig


class PerLayerQwen2Config(PerLayerConfig, transformers.Qwen2Config):
    model_type = "per_layer_qwen2"


class PerLayerQwen2ForCausalLM(PerLayerModel, transformers.Qwen2ForCausalLM):
    config_class = PerLayerQwen2Config


class PerLayerQwen3Config(PerLayerConfig, transformers.Qwen3Config):
    model_type = "per_layer_qwen3"


class PerLayerQwen3ForCausalLM(PerLayerModel, transformers.Qwen3ForCausalLM):
    config_class = PerLayerQwen3Config


class PerLayerGemmaConfig(PerLayerConfig, transformers.GemmaConfig):
    model_type = "per_layer_gemma"


class PerLayerGemmaForCausalLM(PerLayerModel, transformers.GemmaForCausalLM):
    config_class = PerLayerGemmaConfig


class PerLayerGemma2Config(PerLayerConfig, transformers.Gemma2Config):
    model_type = "per_layer_gemma2"


class PerLayerGemma2ForCausalLM(PerLayerModel, transformers.Gemma2ForCausalLM):
    config_class = PerLayerGemma2Config


class PerLayerGemma3TextConfig(PerLayerConfig, transformers.Gemma3TextConfig):
    model_type = "per_layer_gemma3_text"


class PerLayerGemma3ForCausalLM(PerLayerModel, transformers.Gemma3ForCausalLM):
    config_class = PerLayerGemma3TextConfig

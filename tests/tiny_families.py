"""Tiny random models of every architecture that the engine takes in, made and saved by the stock classes.

tiny_family(folder, "GPT2LMHeadModel")              one of the table, with random norms and biases too
tiny_family(folder, "FalconForCausalLM-alibi")      the same architecture with other choices
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from compression.loading.architectures import ARCHITECTURES

_DECODER: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}
_GEMMA: dict[str, Any] = {**_DECODER, "head_dim": 16, "num_key_value_heads": 1}
_WINDOWS: dict[str, Any] = {"sliding_window": 8, "query_pre_attn_scalar": 24}
_OPT: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_GPT2: dict[str, Any] = {"vocab_size": 131, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_NEOX: dict[str, Any] = {**_DECODER, "num_key_value_heads": None, "rope_parameters": {
    "rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}}  # fmt: skip
_FALCON: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_TOKENS,
}
_BLOOM: dict[str, Any] = {"vocab_size": 131, "hidden_size": 32, "n_layer": 3, "n_head": 4, **_TOKENS}
_ENCODER: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 66,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_DISTIL: dict[str, Any] = {
    "vocab_size": 131,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 56,
    "max_position_embeddings": 64,
}
_MOE: dict[str, Any] = {**_DECODER, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_T5: dict[str, Any] = {
    "vocab_size": 131,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 56,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
_LABELS: dict[str, Any] = {
    "id2label": {0: "no", 1: "perhaps", 2: "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
}
_LONG = [1.0 + index / 10 for index in range(3)]

CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**_DECODER, **_BIASED},
    "LlamaForCausalLM-tied": {**_DECODER, "tie_word_embeddings": True, "head_dim": 16},
    "MistralForCausalLM": {**_DECODER, "sliding_window": 8, "head_dim": 16},
    "Qwen2ForCausalLM": {**_DECODER, "tie_word_embeddings": True},
    "Qwen3ForCausalLM": {**_DECODER, "head_dim": 16, "attention_bias": True},
    "Qwen3ForCausalLM-windows": {
        **_DECODER, "head_dim": 24, "tie_word_embeddings": True, "use_sliding_window": True,
        "sliding_window": 8, "max_window_layers": 1,
    },
    "GemmaForCausalLM": _GEMMA,
    "GemmaForCausalLM-untied": {**_GEMMA, "tie_word_embeddings": False, "attention_bias": True},
    "Gemma2ForCausalLM": {**_GEMMA, **_WINDOWS},
    "Gemma2ForCausalLM-uncapped": {
        **_GEMMA, **_WINDOWS, "final_logit_softcapping": None, "attn_logit_softcapping": None,
        "tie_word_embeddings": False, "attention_bias": True,
    },
    "Gemma3ForCausalLM": {**_GEMMA, **_WINDOWS},
    "Gemma3ForCausalLM-scaled": {
        **_GEMMA, **_WINDOWS, "tie_word_embeddings": False, "final_logit_softcapping": 20.0,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "PhiForCausalLM": {**_DECODER, "num_key_value_heads": 4},
    "PhiForCausalLM-norms": {**_DECODER, "qk_layernorm": True, "tie_word_embeddings": True},
    "Phi3ForCausalLM": {**_DECODER, "sliding_window": 9},
    "Phi3ForCausalLM-long": {
        **_DECODER, "tie_word_embeddings": True, "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "factor": 2.0,
            "short_factor": _LONG, "long_factor": [2 * value for value in _LONG],
        },
    },
    "OPTForCausalLM": _OPT,
    "OPTForCausalLM-projected": {
        **_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "activation_function": "gelu",
    },
    "OPTForCausalLM-bare": {
        **_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False,
    },
    "GPT2LMHeadModel": {**_GPT2, **_TOKENS},
    "GPT2LMHeadModel-untied": {
        **_GPT2, **_TOKENS, "n_inner": 56, "tie_word_embeddings": False, "scale_attn_weights": False,
    },
    "GPT2LMHeadModel-inverse": {**_GPT2, **_TOKENS, "scale_attn_by_inverse_layer_idx": True},
    "GPTNeoXForCausalLM": _NEOX,
    "GPTNeoXForCausalLM-serial": {
        **_NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
    },
    "FalconForCausalLM": _FALCON,
    "FalconForCausalLM-heads": {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True},
    "FalconForCausalLM-alibi": {
        **_FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True,
        "ffn_hidden_size": 56, "tie_word_embeddings": False,
    },
    "FalconForCausalLM-new": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "FalconForCausalLM-one-norm": {
        **_FALCON, "new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1,
    },
    "BloomForCausalLM": _BLOOM,
    "BloomForCausalLM-untied": {
        **_BLOOM, "n_head": 2, "tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True,
    },
    "MixtralForCausalLM": {**_DECODER, "num_local_experts": 4},
    "MixtralForCausalLM-tied": {
        **_DECODER, "num_local_experts": 5, "num_experts_per_tok": 1, "head_dim": 16, "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "Qwen2MoeForCausalLM": {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 40},
    "Qwen2MoeForCausalLM-windows": {
        **_MOE, "num_experts": 6, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 16,
        "qkv_bias": False, "use_sliding_window": True, "sliding_window": 8, "norm_topk_prob": True,
        "tie_word_embeddings": True,
    },
    "Qwen3MoeForCausalLM": {**_MOE, "num_experts": 8, "head_dim": 16, "norm_topk_prob": True},
    "Qwen3MoeForCausalLM-windows": {
        **_MOE, "num_experts": 4, "attention_bias": True, "use_sliding_window": True, "sliding_window": 8,
    },
    "BertModel": _ENCODER,
    "BertForSequenceClassification": {**_ENCODER, **_LABELS},
    "RobertaModel": {**_ENCODER, "type_vocab_size": 1},
    "RobertaForSequenceClassification": {**_ENCODER, **_LABELS, "type_vocab_size": 1},
    "DistilBertModel": _DISTIL,
    "DistilBertForSequenceClassification": {**_DISTIL, **_LABELS, "activation": "relu"},
    "T5EncoderModel": _T5,
    "T5EncoderModel-gated": {**_T5, "feed_forward_proj": "gated-gelu", "num_heads": 2},
    "T5ForConditionalGeneration-tied": {**_T5, "decoder_start_token_id": 0},
    "T5ForConditionalGeneration-unscaled": {
        **_T5, "decoder_start_token_id": 0, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "MT5ForConditionalGeneration": {**_T5, "num_layers": 2, "num_decoder_layers": 4, "num_heads": 2},
}  # fmt: skip

_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 24,
    "patch_size": 8,
    "num_channels": 3,
}

OWN_HEADS = ("T5ForConditionalGeneration-unscaled", "MT5ForConditionalGeneration")

_SWIN: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "image_size": 32,
    "patch_size": 4,
}

# Models of images, which no batch of tokens suits.
IMAGES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {**_VIT, **_LABELS},
    "ViTForImageClassification-oblong": {
        **_VIT, **_LABELS, "image_size": [16, 40], "patch_size": [8, 4], "num_channels": 1,
        "qkv_bias": False, "hidden_act": "gelu_new",
    },
    "DeiTForImageClassification": {**_VIT, **_LABELS},
    "SwinForImageClassification": {**_SWIN, **_LABELS},
    "SwinForImageClassification-uneven": {
        **_SWIN, **_LABELS, "image_size": [27, 46], "patch_size": [2, 4], "depths": [1, 2, 1],
        "num_heads": [1, 2, 8], "window_size": 3, "num_channels": 1, "qkv_bias": False,
        "mlp_ratio": 1.75, "hidden_act": "relu",
    },
    "SwinForImageClassification-absolute": {**_SWIN, **_LABELS, "use_absolute_embeddings": True},
}  # fmt: skip


def architecture_of(case: str) -> str:
    """The architecture of a case: what stands before the dash."""
    return case.partition("-")[0]


def tiny_model(case: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the stock class in evaluation mode. Every parameter is random, norms and biases too."""
    import torch

    architecture = architecture_of(case)
    stock = getattr(importlib.import_module(ARCHITECTURES[architecture].module), architecture)
    settings = {key: value for key, value in {**{**CASES, **IMAGES}[case], **changes}.items()}
    if settings.get("num_key_value_heads", 1) is None:
        del settings["num_key_value_heads"]
    model = stock(stock.config_class(**settings)).eval()
    if case in OWN_HEADS:
        # The classes tie every head; a checkpoint that stores another one unties it again.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise + (1.0 if parameter.dim() == 1 else 0.0))
    return model


def tiny_family(folder: Path, case: str, seed: int = 0, **changes: Any) -> Path:
    """Saves `tiny_model` as the stock classes do and gives the folder back."""
    tiny_model(case, seed, **changes).save_pretrained(folder)
    return folder

"""Published models by their settings: each is taken in, and has the number of parameters that is known of
it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compression.anatomy import Inspection, count_macs, inspect
from compression.loading.admission import BytesSource
from compression.loading.config import rewrite_config

# The settings that decide, as the published config.json files spell them.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (
        {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
            "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
            "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
            "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
            "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
            "summary_type": "cls_index", "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
        124_439_808,
    ),
    "opt-125m": (
        {
            "_name_or_path": "facebook/opt-125m", "_remove_final_layer_norm": False,
            "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True, "dropout": 0.1,
            "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0,
            "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
            "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
        },
        125_239_296,
    ),
    "opt-350m": (
        {
            "architectures": ["OPTForCausalLM"], "model_type": "opt", "do_layer_norm_before": False,
            "ffn_dim": 4096, "hidden_size": 1024, "max_position_embeddings": 2048,
            "num_attention_heads": 16, "num_hidden_layers": 24, "vocab_size": 50272,
            "word_embed_proj_dim": 512, "torch_dtype": "float16",
        },
        331_196_416,
    ),
    "pythia-70m": (
        {
            "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
            "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
            "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
            "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
            "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
            "torch_dtype": "float16", "use_cache": True, "use_parallel_residual": True,
            "vocab_size": 50304,
        },
        70_426_624,
    ),
    "bloom-560m": (
        {
            "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0,
            "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
            "model_type": "bloom", "n_embed": 1024, "n_inner": None, "n_layer": 24,
            "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048,
            "skip_bias_add": True, "slow_but_exact": False, "use_cache": True, "vocab_size": 250880,
            "architectures": ["BloomForCausalLM"],
        },
        559_214_592,
    ),
    "falcon-7b": (
        {
            "alibi": False, "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": False,
            "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544,
            "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": True,
            "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
            "parallel_attn": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 65024,
        },
        6_921_720_704,
    ),
    "falcon-rw-1b": (
        {
            "alibi": True, "architectures": ["FalconForCausalLM"], "bias": True, "hidden_size": 2048,
            "model_type": "falcon", "multi_query": False, "new_decoder_architecture": False,
            "num_attention_heads": 32, "num_hidden_layers": 24, "parallel_attn": False,
            "vocab_size": 50304,
        },
        1_311_625_216,
    ),
    "falcon-40b": (
        {
            "alibi": False, "architectures": ["FalconForCausalLM"], "bias": False, "hidden_size": 8192,
            "model_type": "falcon", "new_decoder_architecture": True, "num_attention_heads": 128,
            "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True, "vocab_size": 65024,
        },
        41_303_293_952,
    ),
    "gemma-2b": (
        {
            "architectures": ["GemmaForCausalLM"], "attention_bias": False, "head_dim": 256,
            "hidden_act": "gelu", "hidden_activation": None, "hidden_size": 2048,
            "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
            "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
            "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
            "vocab_size": 256000,
        },
        2_506_172_416,
    ),
    "gemma-2-2b": (
        {
            "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
            "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rope_theta": 10000.0,
            "sliding_window": 4096, "vocab_size": 256000,
        },
        2_614_341_888,
    ),
    "gemma-3-1b": (
        {
            "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None, "bos_token_id": 2,
            "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": None,
            "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
            "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None,
            "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
        999_885_952,
    ),
    "phi-2": (
        {
            "architectures": ["PhiForCausalLM"], "embd_pdrop": 0.0, "hidden_act": "gelu_new",
            "hidden_size": 2560, "intermediate_size": 10240, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
            "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "vocab_size": 51200,
        },
        2_779_683_840,
    ),
    "Phi-3-mini-128k": (
        {
            "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 1,
            "eos_token_id": 32000, "hidden_size": 3072, "intermediate_size": 8192,
            "max_position_embeddings": 131072, "model_type": "phi3", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
            "pad_token_id": 32000, "sliding_window": 262144, "vocab_size": 32064,
            "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        },
        3_821_079_552,
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
            "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
            "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_theta": 1000000,
            "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
            "vocab_size": 151936,
        },
        596_049_920,
    ),
    "Mixtral-8x7B-v0.1": (
        {
            "architectures": ["MixtralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
            "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
            "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "use_cache": True, "vocab_size": 32000,
        },
        46_702_792_704,
    ),
    "Qwen1.5-MoE-A2.7B": (
        {
            "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "decoder_sparse_step": 1, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 2048,
            "initializer_range": 0.02, "intermediate_size": 5632, "max_position_embeddings": 8192,
            "max_window_layers": 21, "model_type": "qwen2_moe", "moe_intermediate_size": 1408,
            "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 60,
            "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16,
            "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
        },
        14_315_784_192,
    ),
    "Qwen3-30B-A3B": (
        {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
            "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
            "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
            "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
            "use_sliding_window": False, "vocab_size": 151936,
        },
        30_532_122_624,
    ),
    "vit-base-patch16-224": (
        {
            "architectures": ["ViTForImageClassification"], "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 768,
            "id2label": {str(index): "crane" if index in (134, 517) else f"class {index}"
                         for index in range(1000)},
            "image_size": 224, "initializer_range": 0.02, "intermediate_size": 3072,
            "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 12, "num_channels": 3,
            "num_hidden_layers": 12, "patch_size": 16, "qkv_bias": True,
        },
        86_567_656,
    ),
    "t5-small, its encoder": (
        {
            "architectures": ["T5EncoderModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
            "feed_forward_proj": "relu", "initializer_factor": 1.0, "is_encoder_decoder": True,
            "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
            "num_layers": 6, "output_past": True, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "vocab_size": 32128,
        },
        35_330_816,
    ),
    "t5-small": (
        {
            "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
            "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
            "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {"num_beams": 4}},
            "vocab_size": 32128,
        },
        60_506_624,
    ),
    "flan-t5-base": (
        {
            "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 768,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
            "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
            "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_decoder_layers": 12,
            "num_heads": 12, "num_layers": 12, "output_past": True, "pad_token_id": 0,
            "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
            "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32128,
        },
        247_577_856 - 32128 * 768,  # its files hold a head
    ),
    "swin-tiny-patch4-window7-224": (
        {
            "architectures": ["SwinForImageClassification"], "attention_probs_dropout_prob": 0.0,
            "depths": [2, 2, 6, 2], "drop_path_rate": 0.1, "embed_dim": 96, "encoder_stride": 32,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 768,
            "id2label": {str(index): f"class {index}" for index in range(1000)}, "image_size": 224,
            "initializer_range": 0.02, "layer_norm_eps": 1e-05, "mlp_ratio": 4.0, "model_type": "swin",
            "num_channels": 3, "num_heads": [3, 6, 12, 24], "num_layers": 4, "patch_size": 4,
            "path_norm": True, "qkv_bias": True, "torch_dtype": "float32",
            "use_absolute_embeddings": False, "window_size": 7,
        },
        28_288_354,
    ),
    "t5-v1_1-xxl, its encoder": (
        {
            "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
            "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
            "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64,
            "num_layers": 24, "output_past": True, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
        },
        4_762_310_656,
    ),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        {
            "activation": "gelu", "architectures": ["DistilBertForSequenceClassification"],
            "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "finetuning_task": "sst-2",
            "hidden_dim": 3072, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
            "initializer_range": 0.02, "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
            "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6,
            "output_past": True, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
            "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
        },
        66_955_010,
    ),
    "roberta-base, two classes": (
        {
            "architectures": ["RobertaForSequenceClassification"], "bos_token_id": 0, "eos_token_id": 2,
            "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
        },
        124_647_170,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    config, parameters = PUBLISHED[name]
    found = rewrite_config(BytesSource(json.dumps(config).encode()))
    inspection = inspect(found.config, [])
    assert inspection.parameters == parameters
    assert Inspection.from_json(json.loads(json.dumps(inspection.to_json()))) == inspection
    assert found.config == rewrite_config(BytesSource(json.dumps(found.config).encode())).config


def test_settings_that_have_moved() -> None:
    def rewritten(name: str) -> dict[str, Any]:
        return rewrite_config(BytesSource(json.dumps(PUBLISHED[name][0]).encode())).config

    assert rewritten("pythia-70m")["rope_parameters"] == {
        "rope_theta": 10000.0,
        "rope_type": "default",
        "partial_rotary_factor": 0.25,
    }
    assert rewritten("phi-2")["rope_parameters"]["partial_rotary_factor"] == 0.4
    assert rewritten("gemma-3-1b")["rope_parameters"] == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert rewritten("gemma-3-1b")["layer_types"].count("full_attention") == 4
    assert rewritten("gemma-2-2b")["layer_types"][:2] == ["sliding_attention", "full_attention"]
    assert rewritten("gemma-2b")["hidden_act"] == "gelu_pytorch_tanh"
    assert rewritten("Phi-3-mini-128k")["rope_parameters"]["original_max_position_embeddings"] == 4096
    assert rewritten("bloom-560m")["hidden_size"] == 1024
    assert rewritten("bloom-560m")["n_head"] == 16


def test_a_token_uses_a_few_of_many_experts() -> None:
    """The multiply-accumulates of a token, against the parameters that are known to be active."""
    for name, active in {
        "Mixtral-8x7B-v0.1": 12.88e9,
        "Qwen1.5-MoE-A2.7B": 2.69e9,
        "Qwen3-30B-A3B": 3.35e9,
    }.items():
        config = rewrite_config(BytesSource(json.dumps(PUBLISHED[name][0]).encode())).config
        inspection = inspect(config, [])
        macs = count_macs(inspection, 1).total
        table = inspection.vocabulary * inspection.hidden
        assert abs(macs + table - active) < 0.01 * active


def test_images_have_their_own_context() -> None:
    found = rewrite_config(BytesSource(json.dumps(PUBLISHED["vit-base-patch16-224"][0]).encode()))
    inspection = inspect(found.config, [])
    assert (inspection.context, inspection.image) == (197, (3, 224, 224))
    # 17.6 billion multiply-accumulates, as papers count them for this model.
    assert abs(count_macs(inspection, 197).total - 17.58e9) < 0.02e9


def test_windows_and_stages() -> None:
    """4.5 billion multiply-accumulates, as the paper counts them (Liu et al. 2021, table 1)."""
    found = rewrite_config(BytesSource(json.dumps(PUBLISHED["swin-tiny-patch4-window7-224"][0]).encode()))
    inspection = inspect(found.config, [])
    assert (inspection.layers, inspection.context) == (12, 56 * 56)
    assert abs(count_macs(inspection, inspection.context).total - 4.5e9) < 0.02e9


def test_a_head_of_its_own_counts() -> None:
    config = rewrite_config(BytesSource(json.dumps(PUBLISHED["flan-t5-base"][0]).encode())).config
    inspection = inspect(config, ["lm_head.weight"])
    assert (inspection.parameters, inspection.tied_embeddings) == (247_577_856, False)
    assert (config["scale_decoder_outputs"], config["tie_word_embeddings"]) == (False, False)
    assert inspection.layers == 24


def test_positions_of_roberta_begin_after_the_padding() -> None:
    found = rewrite_config(BytesSource(json.dumps(PUBLISHED["roberta-base, two classes"][0]).encode()))
    assert inspect(found.config, []).context == 512

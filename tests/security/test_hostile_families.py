"""Settings that contradict themselves, for every family: refused in our words, or a model can be built."""

from __future__ import annotations

import copy
import importlib
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.anatomy import inspect
from compression.errors import ConfigInvalid
from compression.loading.admission import BytesSource
from compression.loading.architectures import ARCHITECTURES
from compression.loading.config import rewrite_config
from tests.tiny_families import CASES as TEXTS
from tests.tiny_families import IMAGES, architecture_of, tiny_model

CASES = {**TEXTS, **IMAGES}


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    """The config.json of every case, as the stock classes write it."""
    found = {}
    for case in CASES:
        model = tiny_model(case)
        config = json.loads(model.config.to_json_string(use_diff=False))
        found[case] = {**config, "architectures": [architecture_of(case)]}
    return found


def source(config: dict[str, Any]) -> BytesSource:
    return BytesSource(json.dumps(config).encode())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Qwen3ForCausalLM", {"head_dim": 7}, "even"),
    ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "must list 3"),
    ("Qwen3ForCausalLM", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window in use"),
    ("GemmaForCausalLM", {"use_bidirectional_attention": True}, "only decoders"),
    ("GemmaForCausalLM", {"hidden_act": "os.system"}, "'gelu'"),
    ("Gemma2ForCausalLM", {"hidden_activation": "evil"}, "'gelu'"),
    ("Gemma2ForCausalLM", {"hidden_size": 33}, "no multiple of num_attention_heads"),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": 0}, "must be a number"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "must be a whole number"),
    ("Gemma2ForCausalLM", {"layer_types": ["chunked_attention"] * 3}, "must list 3"),
    ("Gemma3ForCausalLM", {"sliding_window_pattern": 0, "layer_types": None}, "must be a whole number"),
    ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": {"rope_type": "evil"}}}, "rope_type"),
    ("Gemma3ForCausalLM", {"rope_parameters": [1]}, "must be an object"),
    ("PhiForCausalLM", {"partial_rotary_factor": 0.4, "rope_parameters": None}, "rotates 3 of 8"),
    ("PhiForCausalLM", {"rope_parameters": {"partial_rotary_factor": 2}}, "must be a number"),
    ("PhiForCausalLM", {"head_dim": 16}, "differs from"),
    ("Phi3ForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "default and longrope"),
    (
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "must list 4 numbers",
    ),
    ("Phi3ForCausalLM", {"pad_token_id": None, "hidden_size": 34}, "no multiple"),
    ("OPTForCausalLM", {"_remove_final_layer_norm": True}, "not supported"),
    ("OPTForCausalLM", {"word_embed_proj_dim": 0}, "must be a whole number"),
    ("OPTForCausalLM", {"activation_function": "evil"}, "'gelu'"),
    ("OPTForCausalLM", {"num_attention_heads": 5}, "no multiple"),
    ("GPT2LMHeadModel", {"add_cross_attention": True}, "only decoders"),
    ("GPT2LMHeadModel", {"n_head": 5}, "no multiple of n_head"),
    ("GPT2LMHeadModel", {"hidden_size": 64}, "which means the same"),
    ("GPT2LMHeadModel", {"n_embd": None}, "n_embd is missing"),
    ("GPT2LMHeadModel", {"n_inner": -1}, "must be a whole number"),
    ("GPTNeoXForCausalLM", {"rotary_pct": 0.01, "rope_parameters": None}, "rotates 0 of 8"),
    ("GPTNeoXForCausalLM", {"hidden_size": 33}, "no multiple"),
    ("FalconForCausalLM", {"n_embed": 64}, "which means the same"),
    ("FalconForCausalLM", {"num_ln_in_parallel_attn": 2}, "only the new_decoder_architecture"),
    ("FalconForCausalLM", {"num_ln_in_parallel_attn": 3}, "must be a whole number"),
    ("FalconForCausalLM-new", {"parallel_attn": False}, "does not know"),
    ("FalconForCausalLM-new", {"num_kv_heads": 3}, "no multiple of num_kv_heads"),
    ("FalconForCausalLM", {"num_attention_heads": 32}, "rotary positions need an even number"),
    ("BloomForCausalLM", {"n_head": 5}, "no multiple of n_head"),
    ("BloomForCausalLM", {"num_hidden_layers": 5}, "which means the same"),
    ("BloomForCausalLM", {"slow_but_exact": True, "pretraining_tp": 2}, "as a whole"),
    ("MixtralForCausalLM", {"num_local_experts": 0}, "must be a whole number"),
    ("MixtralForCausalLM", {"num_local_experts": 1 << 40}, "must be a whole number"),
    ("MixtralForCausalLM", {"num_experts": 8}, "which means the same"),
    ("MixtralForCausalLM", {"num_experts_per_tok": 5}, "there are 4 experts"),
    ("MixtralForCausalLM", {"head_dim": 7}, "even"),
    ("MixtralForCausalLM", {"sliding_window": 0}, "must be a whole number"),
    ("Qwen2MoeForCausalLM", {"mlp_only_layers": [0]}, "experts in every layer"),
    ("Qwen2MoeForCausalLM", {"mlp_only_layers": "x"}, "experts in every layer"),
    ("Qwen2MoeForCausalLM", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window in use"),
    ("Qwen2MoeForCausalLM", {"shared_expert_intermediate_size": 0}, "must be a whole number"),
    ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, "experts in every layer"),
    ("Qwen3MoeForCausalLM", {"moe_intermediate_size": -1}, "must be a whole number"),
    ("Qwen3MoeForCausalLM", {"hidden_act": "evil"}, "'gelu'"),
    ("RobertaModel", {"is_decoder": True}, "only encoders"),
    ("RobertaModel", {"add_cross_attention": True}, "only encoders"),
    ("RobertaModel", {"max_position_embeddings": 3}, "positions begin after"),
    ("RobertaModel", {"pad_token_id": -1}, "must be a whole number"),
    ("RobertaForSequenceClassification", {"problem_type": "regression"}, "single_label_classification"),
    ("T5EncoderModel", {"is_decoder": True}, "only encoders"),
    ("T5EncoderModel", {"feed_forward_proj": "gated-evil"}, "after gated-"),
    ("T5EncoderModel", {"feed_forward_proj": "gated-gated-gelu"}, "after gated-"),
    ("T5EncoderModel", {"feed_forward_proj": ["relu"]}, "after gated-"),
    ("T5EncoderModel", {"relative_attention_num_buckets": 6}, "multiple of 4"),
    ("T5EncoderModel", {"relative_attention_max_distance": 2}, "a quarter of it below"),
    ("T5EncoderModel", {"d_kv": 0}, "must be a whole number"),
    ("T5EncoderModel", {"hidden_size": 64}, "which means the same"),
    ("T5ForConditionalGeneration-tied", {"is_decoder": True}, "with their decoder"),
    ("T5ForConditionalGeneration-tied", {"is_encoder_decoder": False}, "has a decoder"),
    ("T5ForConditionalGeneration-tied", {"num_decoder_layers": 0}, "must be a whole number"),
    ("T5ForConditionalGeneration-tied", {"decoder_start_token_id": 131}, "from 0 to 130"),
    ("T5ForConditionalGeneration-tied", {"decoder_start_token_id": -1}, "from 0 to 130"),
    ("T5ForConditionalGeneration-tied", {"relative_attention_max_distance": 4}, "half of it below"),
    ("T5ForConditionalGeneration-tied", {"scale_decoder_outputs": 1}, "true or false"),
    ("MT5ForConditionalGeneration", {"tie_word_embeddings": "no"}, "true or false"),
    ("MT5ForConditionalGeneration", {"model_type": "t5"}, "'mt5'"),
    ("SwinForImageClassification", {"depths": []}, "one for each stage"),
    ("SwinForImageClassification", {"depths": [1, 2.5]}, "one for each stage"),
    ("SwinForImageClassification", {"depths": [1, 0]}, "each must be a whole number"),
    ("SwinForImageClassification", {"depths": [1, 2, 3]}, "one number for each of the 3 stages"),
    ("SwinForImageClassification", {"num_heads": [2, 5]}, "is no multiple"),
    ("SwinForImageClassification", {"num_heads": 2}, "one for each stage"),
    ("SwinForImageClassification", {"window_size": 5}, "cannot run"),
    ("SwinForImageClassification", {"hidden_size": 33}, "the stages make it 32"),
    ("SwinForImageClassification", {"num_layers": 3}, "the stages make it 2"),
    ("SwinForImageClassification", {"mlp_ratio": 0.01}, "leaves no neuron"),
    ("SwinForImageClassification", {"mlp_ratio": "4"}, "must be a number"),
    ("SwinForImageClassification-absolute", {"image_size": 33}, "multiple of patch_size"),
    ("ViTForImageClassification", {"image_size": 0}, "must be a whole number"),
    ("ViTForImageClassification", {"image_size": [24]}, "height and width"),
    ("ViTForImageClassification", {"image_size": [24, 1 << 20]}, "height and width"),
    ("ViTForImageClassification", {"image_size": "24"}, "must be a whole number"),
    ("ViTForImageClassification", {"patch_size": 25}, "more than image_size"),
    ("ViTForImageClassification", {"patch_size": 0}, "must be a whole number"),
    ("ViTForImageClassification", {"num_channels": 1 << 30}, "must be a whole number"),
    ("ViTForImageClassification", {"num_attention_heads": 5}, "no multiple"),
    ("DeiTForImageClassification", {"id2label": {"0": "a"}}, "regression"),
    ("DeiTForImageClassification", {"hidden_act": "evil"}, "'gelu'"),
    ("DistilBertModel", {"n_heads": 5}, "no multiple of n_heads"),
    ("DistilBertModel", {"activation": "evil"}, "'gelu'"),
    ("DistilBertForSequenceClassification", {"id2label": {"0": "a"}}, "regression"),
]


@pytest.mark.parametrize(("case", "change", "words"), REFUSED, ids=str)
def test_contradictions(
    case: str, change: dict[str, Any], words: str, configs: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        rewrite_config(source({**configs[case], **change}))
    assert words in caught.value.message, caught.value.message


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "change",
    [{"auto_map": {"AutoModel": "x.Y"}}, {"quantization_config": {"quant_method": "gptq"}}, {"_evil": 1}],
    ids=str,
)
def test_code_and_formats(case: str, change: dict[str, Any], configs: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ConfigInvalid):
        rewrite_config(source({**configs[case], **change}))


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30, 1.5, "32", True, [], {}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_sizes_beyond_reason(case: str, value: Any, configs: dict[str, dict[str, Any]]) -> None:
    config = configs[case]
    names = {
        "vocab_size", "hidden_size", "n_embd", "dim", "intermediate_size", "ffn_dim", "n_inner", "hidden_dim",
        "num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads",
        "max_position_embeddings", "n_positions", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
        "num_decoder_layers", "embed_dim", "window_size",
    } - ({"intermediate_size", "max_position_embeddings"} if case.startswith("Bloom") else set())  # fmt: skip
    names -= {"num_heads"} if case.startswith("Swin") else set()
    names -= {"num_decoder_layers"} if case.startswith("T5EncoderModel") else set()
    for key in names & config.keys():
        with pytest.raises(ConfigInvalid, match="must be a whole number from"):
            rewrite_config(source({**config, key: value}))


def build(config: dict[str, Any]) -> None:
    """The stock class makes the config and the model, without storage."""
    import torch

    architecture = config["architectures"][0]
    stock = getattr(importlib.import_module(ARCHITECTURES[architecture].module), architecture)
    with torch.device("meta"):
        model = stock(stock.config_class.from_dict(config))
    assert sum(value.numel() for value in model.parameters()) == inspect(config, []).parameters + (
        pooler(model) if architecture in ("BertModel", "RobertaModel") else 0
    )


def pooler(model: Any) -> int:
    """Elements of a pooler, which a file without names does not show."""
    return sum(value.numel() for value in model.pooler.parameters())


VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 64, 130, 131])
    | st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0, 1e-3, 20.0])
    | st.sampled_from([[2], [1, 2], [2, 4], [1, 1, 1], [2, "x"], [0, 1]])
    | st.sampled_from(["silu", "gelu", "relu", "full_attention", "../x", ""])
    | st.sampled_from([
        {}, [], {"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0}, {"type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"full_attention": None}, {"sliding_attention": {"rope_theta": 5.0}},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0},
        ["full_attention"] * 3, ["sliding_attention"] * 3, {"0": "a", "1": "b"},
    ])
)  # fmt: skip
EXTRA = [
    "depths", "num_heads", "window_size", "embed_dim", "mlp_ratio", "use_absolute_embeddings",
    "num_decoder_layers", "decoder_start_token_id", "is_encoder_decoder", "tie_word_embeddings",
    "image_size", "patch_size", "num_channels", "num_experts", "num_local_experts", "num_experts_per_tok",
    "mlp_only_layers", "decoder_sparse_step",
    "rope_scaling", "rope_theta", "rotary_pct", "rotary_emb_base", "partial_rotary_factor", "n_embed",
    "head_dim",
    "hidden_size", "num_hidden_layers", "num_key_value_heads", "num_kv_heads", "sliding_window_pattern",
    "original_max_position_embeddings", "num_ln_in_parallel_attn", "seq_length", "num_labels", "is_decoder",
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzz(configs: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    """Refused in our words, or transformers builds the model that the inspection describes."""
    config = copy.deepcopy(configs[data.draw(st.sampled_from(list(CASES)))])
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*sorted(config), *EXTRA]))
        # The stock classes write into what they are given.
        config[key] = copy.deepcopy(data.draw(VALUES))
    try:
        rewritten = rewrite_config(source(config))
    except ConfigInvalid as error:
        assert error.message.startswith("config.json")
        assert re.search(r"[.]$", error.message)
        return
    except Exception as error:
        assert type(error).__name__ == "ArchitectureUnknown"
        return
    build(rewritten.config)
    assert rewrite_config(source(rewritten.config)).config == rewritten.config

"""Tiny checkpoints for tests, written without torch: real config.json, tokenizer.json and safetensors files.

The shapes are written out here by hand, on purpose not taken from the code under test; a test proves that
stock transformers loads each of them without a missing or unexpected weight.

    tiny_llama(folder)                              grouped-query Llama, 2 layers, byte-level tokenizer
    tiny_llama(folder, architecture="Qwen2ForCausalLM", tied=True, dtype="bfloat16", shards=3)
    tiny_bert(folder, labels=["neg", "pos"])        classifier; labels=None: headless encoder
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}
END = "<|endoftext|>"
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_llama(
    folder: Path,
    *,
    architecture: str = "LlamaForCausalLM",
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    key_value_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 64,
    vocabulary: int = 264,
    context: int = 128,
    tied: bool = False,
    store_tied_head: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    dtype: str = "float32",
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    scale: float = 0.1,
) -> Path:
    """Writes a Llama-type decoder into `folder` (made if needed) and returns it. `config` overrides
    keys of config.json; `store_tied_head` stores lm_head.weight although it is tied to the embeddings."""
    size = head_dim or hidden // heads
    settings: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": dtype,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_value_heads,
        "pad_token_id": None,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    if architecture == "LlamaForCausalLM":
        settings |= {
            "attention_bias": attention_bias,
            "mlp_bias": mlp_bias,
            "pretraining_tp": 1,
            "head_dim": size,
        }
    elif architecture == "MistralForCausalLM":
        settings |= {"sliding_window": None, "head_dim": size}
    else:
        settings |= {
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": layers,
            "layer_types": ["full_attention"] * layers,
        }
    settings |= dict(config or {})
    inputs_biased = attention_bias or architecture == "Qwen2ForCausalLM"
    random = np.random.default_rng(seed)
    tensors: Tensors = {}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        tensors[f"{name}.weight"] = (random.standard_normal((rows, columns)) * scale).astype(np.float32)
        if bias:
            tensors[f"{name}.bias"] = (random.standard_normal(rows) * scale).astype(np.float32)

    linear("model.embed_tokens", vocabulary, hidden, False)
    for index in range(layers):
        block = f"model.layers.{index}"
        linear(f"{block}.self_attn.q_proj", heads * size, hidden, inputs_biased)
        linear(f"{block}.self_attn.k_proj", key_value_heads * size, hidden, inputs_biased)
        linear(f"{block}.self_attn.v_proj", key_value_heads * size, hidden, inputs_biased)
        linear(f"{block}.self_attn.o_proj", hidden, heads * size, attention_bias)
        linear(f"{block}.mlp.gate_proj", ffn, hidden, mlp_bias)
        linear(f"{block}.mlp.up_proj", ffn, hidden, mlp_bias)
        linear(f"{block}.mlp.down_proj", hidden, ffn, mlp_bias)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    if not tied:
        linear("lm_head", vocabulary, hidden, False)
    elif store_tied_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_checkpoint(folder, settings, tensors, dtype=dtype, shards=shards)
    if tokenizer:
        write_byte_tokenizer(folder, context=context)
    return folder


def tiny_bert(
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    ffn: int = 64,
    vocabulary: int = 264,
    context: int = 64,
    prefix: bool | None = None,
    pooler: bool = True,
    position_ids: bool = False,
    dtype: str = "float32",
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    scale: float = 0.1,
) -> Path:
    """Writes a BERT-type encoder: with `labels` a BertForSequenceClassification, else a BertModel.

    `prefix` says whether weight names begin with `bert.` (default: only with a head); `position_ids` adds the
    old int64 buffer."""
    settings: dict[str, Any] = {
        "architectures": ["BertForSequenceClassification" if labels else "BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "dtype": dtype,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "5.23.0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    if labels:
        settings["id2label"] = {str(index): label for index, label in enumerate(labels)}
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    settings |= dict(config or {})
    start = "bert." if (prefix if prefix is not None else labels is not None) else ""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}

    def table(name: str, rows: int, columns: int) -> None:
        tensors[name] = (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def linear(name: str, rows: int, columns: int) -> None:
        table(f"{name}.weight", rows, columns)
        tensors[f"{name}.bias"] = (random.standard_normal(rows) * scale).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)
        tensors[f"{name}.bias"] = (0.1 * random.standard_normal(hidden)).astype(np.float32)

    table(f"{start}embeddings.word_embeddings.weight", vocabulary, hidden)
    table(f"{start}embeddings.position_embeddings.weight", context, hidden)
    table(f"{start}embeddings.token_type_embeddings.weight", 2, hidden)
    norm(f"{start}embeddings.LayerNorm")
    if position_ids:
        tensors[f"{start}embeddings.position_ids"] = np.arange(context, dtype=np.int64)[None]
    for index in range(layers):
        block = f"{start}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{block}.attention.self.{part}", hidden, hidden)
        linear(f"{block}.attention.output.dense", hidden, hidden)
        norm(f"{block}.attention.output.LayerNorm")
        linear(f"{block}.intermediate.dense", ffn, hidden)
        linear(f"{block}.output.dense", hidden, ffn)
        norm(f"{block}.output.LayerNorm")
    if pooler:
        linear(f"{start}pooler.dense", hidden, hidden)
    if labels:
        linear("classifier", len(labels), hidden)
    write_checkpoint(folder, settings, tensors, dtype=dtype, shards=shards)
    if tokenizer:
        write_byte_tokenizer(folder, bert=True, context=context)
    return folder


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, *, dtype: str = "float32", shards: int = 1
) -> None:
    """Writes config.json and model.safetensors, or `shards` files and an index (weights dealt in turn)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype=dtype)
        return
    names = list(tensors)
    where: dict[str, str] = {}
    total = 0
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        where |= dict.fromkeys(part, file)
        total += sum(len(encode(value, dtype)[1]) for value in part.values())
        write_safetensors(folder / file, part, dtype=dtype)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def encode(value: np.ndarray, dtype: str) -> tuple[str, bytes]:
    """The safetensors dtype code and the bytes of an array stored as `dtype`; integers stay as they are."""
    if value.dtype.kind == "i":
        return CODES[value.dtype.name], value.tobytes()
    if dtype == "bfloat16":
        bits = value.astype(np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # round to nearest, ties to even
        return "BF16", (rounded >> 16).astype(np.uint16).tobytes()
    return CODES[dtype], value.astype(dtype).tobytes()


def write_safetensors(path: Path, tensors: Tensors, *, dtype: str = "float32") -> None:
    """Writes arrays as one safetensors file with the header padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    position = 0
    for name, value in tensors.items():
        code, data = encode(value, dtype)
        header[name] = {
            "dtype": code,
            "shape": list(value.shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def write_byte_tokenizer(folder: Path, *, bert: bool = False, context: int = 128) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a tokenizer that maps every byte to one token.

    Decoders: token 0 is <|endoftext|>, bytes follow (257 tokens). BERT: [PAD] [UNK] [CLS] [SEP] [MASK], then
    bytes (261 tokens)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = BERT_SPECIALS if bert else [END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]" if bert else None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    settings: dict[str, Any] = {"model_max_length": context, "tokenizer_class": "PreTrainedTokenizerFast"}
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        roles = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
        settings |= dict(zip(roles, BERT_SPECIALS, strict=True))
    else:
        settings |= {"bos_token": END, "eos_token": END, "pad_token": END}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

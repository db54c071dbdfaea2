"""Models of sound, text and series as transformers has them, from small configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bench.graph_zoo.hub import made

TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
WAVE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 8, 4],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "Wav2Vec2": ("Wav2Vec2ForSequenceClassification", WAVE, "logits", "sound:1x4000"),
    "HuBERT": ("HubertForSequenceClassification", WAVE, "logits", "sound:1x4000"),
    "AST": (
        "ASTForAudioClassification",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_length": 128,
            "num_mel_bins": 64,
        },
        "logits",
        "sound:1x128x64",
    ),
    "HiFi-GAN": (
        "SpeechT5HifiGan",
        {
            "model_in_dim": 40,
            "upsample_initial_channel": 64,
            "upsample_rates": [4, 4],
            "upsample_kernel_sizes": [8, 8],
        },
        "",
        "sound:1x32x40",
    ),
    "BERT": ("BertForSequenceClassification", TEXT, "logits", "tokens:1x24:int64"),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 200, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        "logits",
        "tokens:1x24:int64",
    ),
    "PatchTSMixer": (
        "PatchTSMixerForTimeSeriesClassification",
        {
            "context_length": 64,
            "num_input_channels": 3,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
            "num_layers": 2,
            "num_targets": 5,
        },
        "prediction_outputs",
        "series:1x64x3",
    ),
    "PatchTST": (
        "PatchTSTForClassification",
        {
            "context_length": 64,
            "num_input_channels": 3,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_targets": 5,
        },
        "prediction_logits",
        "series:1x64x3",
    ),
}
"""Class, config, output and input by name."""


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    for name, (kind, config, output, shape) in MODELS.items():
        yield name, lambda kind=kind, config=config, output=output: made(kind, config, output), (shape,)

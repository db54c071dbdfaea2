"""Models of images as transformers has them, from small configs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

TRACED = {"Swin"}
"""Models that torch's newer exporter fails for."""
IMAGE = ("image:1x3x64x64",)
SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
VIT = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96], "depths": [2, 2, 2]},
        "logits",
    ),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32, 48], "depths": [2, 2, 2], "num_stages": 3},
        "logits",
    ),
    "ConvNeXtV2": (
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [16, 32, 48], "depths": [2, 2, 2], "num_stages": 3},
        "logits",
    ),
    "MobileNetV1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}, "logits"),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}, "logits"),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        "logits",
    ),
    "RegNet": (
        "RegNetForImageClassification",
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64, 96],
            "depths": [1, 2, 2],
            "groups_width": 8,
            "layer_type": "y",
        },
        "logits",
    ),
    "BiT": (
        "BitForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 1], "num_groups": 8},
        "logits",
    ),
    "HGNet": ("HGNetV2ForImageClassification", {"num_labels": 10}, "logits"),
    "ViT": ("ViTForImageClassification", VIT, "logits"),
    "DeiT": ("DeiTForImageClassification", VIT, "logits"),
    "BEiT": ("BeitForImageClassification", VIT, "logits"),
    "Data2Vec": ("Data2VecVisionForImageClassification", VIT, "logits"),
    "DINOv2": ("Dinov2ForImageClassification", VIT | {"mlp_ratio": 2, "use_swiglu_ffn": True}, "logits"),
    "Swin": ("SwinForImageClassification", SWIN, "logits"),
    "SwinV2": ("Swinv2ForImageClassification", SWIN, "logits"),
    "LeViT": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "patch_size": 16,
        },
        "logits",
    ),
    "PoolFormer": (
        "PoolFormerForImageClassification",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
        "logits",
    ),
    "MobileViT": (
        "MobileViTForImageClassification",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96]},
        "logits",
    ),
    "MobileViTV2": (
        "MobileViTV2ForImageClassification",
        {"image_size": 64, "width_multiplier": 0.25},
        "logits",
    ),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 48,
        },
        "logits",
    ),
    "CvT": (
        "CvtForImageClassification",
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        "logits",
    ),
    "PVT": (
        "PvtForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "depths": [1, 1, 1, 1],
        },
        "logits",
    ),
    "PVTv2": (
        "PvtV2ForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "depths": [1, 1, 1, 1],
        },
        "logits",
    ),
    "FocalNet": (
        "FocalNetForImageClassification",
        {
            "image_size": 64,
            "embed_dim": 24,
            "hidden_sizes": [24, 48],
            "depths": [1, 2],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        "logits",
    ),
    "SwiftFormer": (
        "SwiftFormerForImageClassification",
        {"image_size": 64, "embed_dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        "logits",
    ),
    "Hiera": (
        "HieraForImageClassification",
        {
            "image_size": [64, 64],
            "embed_dim": 32,
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
        },
        "logits",
    ),
    "YOLOS": ("YolosForObjectDetection", VIT | {"image_size": [64, 64], "num_detection_tokens": 8}, "logits"),
    "Swin2SR": (
        "Swin2SRForImageSuperResolution",
        {
            "image_size": 32,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
            "upscale": 2,
        },
        "reconstruction",
    ),
    "DPT": (
        "DPTForDepthEstimation",
        VIT
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 24, 32, 32],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
        "predicted_depth",
    ),
    "GLPN": (
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 32,
        },
        "predicted_depth",
    ),
    "CLIP vision": ("CLIPVisionModel", VIT, "pooler_output"),
    "SigLIP vision": ("SiglipVisionModel", VIT, "pooler_output"),
}
"""Class, config and output by name."""


def made(name: str, config: dict[str, Any], output: str) -> Any:
    """The model of a class, as a module of one tensor in and one out."""
    import torch
    import transformers

    kind: Any = getattr(transformers, name)

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = kind(kind.config_class(**config))

        def forward(self, x: Any) -> Any:
            found = self.model(x)
            return getattr(found, output) if output else found

    return OneOutput()


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    for name, (kind, config, output) in MODELS.items():
        shape = "image:1x3x32x32" if name == "Swin2SR" else IMAGE[0]
        build = functools.partial(made, kind, config, output)
        yield name, build, (shape,), name in TRACED

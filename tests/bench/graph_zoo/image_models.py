"""Models of timm without weights, at 10 classes and small images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

SIZES = {
    "coatnet_pico_rw_224": 64,
    "coat_lite_tiny": 64,
    "convit_tiny": 64,
    "pit_ti_224": 64,
    "cait_xxs24_224": 64,
    "xcit_nano_12_p16_224": 64,
    "mixer_s32_224": 64,
    "resmlp_12_224": 64,
    "gmlp_ti16_224": 64,
    "visformer_tiny": 64,
    "deit_tiny_patch16_224": 64,
    "eva02_tiny_patch14_224": 56,
    "maxvit_rmlp_pico_rw_256": 64,
}
"""Models whose images have a size of their own: it is given to them."""
FREE = (
    "ghostnet_050",
    "mobilenetv3_small_050",
    "mnasnet_small",
    "lcnet_050",
    "densenet121",
    "inception_v3",
    "legacy_xception",
    "res2net50_14w_8s",
    "resnest14d",
    "skresnet18",
    "cspdarknet53",
    "hrnet_w18_small",
    "rexnet_100",
    "repvgg_a0",
    "nf_resnet26",
    "ecaresnet26t",
    "efficientvit_b0",
    "efficientvit_m0",
    "fastvit_t8",
    "mobileone_s0",
    "edgenext_xx_small",
    "starnet_s1",
    "repvit_m0_9",
    "mambaout_femto",
    "inception_next_atto",
    "selecsls42",
    "ese_vovnet19b_dw",
    "mobilenetv4_conv_small_050",
    "regnetz_005",
)
"""Models that take images of any size."""
TRACED = {"maxvit_rmlp_pico_rw_256"}
"""Models that torch's newer exporter fails for."""
given_operators: list[Any] = []
"""Kept, since torch forgets what was defined with the library that defined it."""


def made(name: str, size: int | None) -> Any:
    """The model without weights; widths are as published."""
    import torch

    # timm imports torchvision, whose wheel on PyPI is built for CUDA: beside torch without CUDA its operators
    # are not loaded, and it fails at the first that it describes. No model here needs one.
    if not hasattr(torch.ops.torchvision, "nms"):
        given_operators.append(torch.library.Library("torchvision", "FRAGMENT"))
        for missing in ("nms", "qnms"):
            given_operators[-1].define(
                f"{missing}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import timm

    given = {"img_size": size} if size else {}
    return timm.create_model(name, pretrained=False, num_classes=10, **given)


def listed() -> Iterator[tuple[Any, ...]]:
    """Name, what builds it, and inputs."""
    for name in FREE:
        side = 96 if name in {"inception_v3", "legacy_xception", "selecsls42"} else 64
        yield name, lambda name=name: made(name, None), (f"image:1x3x{side}x{side}",)
    for name, size in SIZES.items():
        yield name, functools.partial(made, name, size), (f"image:1x3x{size}x{size}",), name in TRACED

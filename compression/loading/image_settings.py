"""How images become the input of a classifier, in the words that every image processor shares: resize, crop,
rescale, normalise.

Processors and timm have settings of their own (a share that is cropped, a second normalisation). Where they
come to those words they are written in them, as the settings of BiT's processor, which has no others; where
they do not, nothing is written, and nothing guessed. Plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

PLAIN = ("ViT", "DeiT", "CLIP", "Bit")
"""Processors whose settings are taken as they are."""
_HALF = [0.5, 0.5, 0.5]
_USUAL: Mapping[str, Json] = {
    "ConvNext": {
        "do_resize": True, "size": {"shortest_edge": 384}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": _HALF, "image_std": _HALF,
        "crop_pct": 224 / 256,
    },
    "EfficientNet": {
        "do_resize": True, "size": {"height": 346, "width": 346}, "resample": 3, "do_center_crop": False,
        "crop_size": {"height": 289, "width": 289}, "do_rescale": True, "rescale_factor": 1 / 255,
        "rescale_offset": False, "do_normalize": True, "image_mean": _HALF, "image_std": _HALF,
        "include_top": True,
    },
    **{
        name: {
            "do_resize": True, "size": {"shortest_edge": 256}, "resample": 2, "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": _HALF, "image_std": _HALF,
        }
        for name in ("MobileNetV1", "MobileNetV2")
    },
}  # fmt: skip
"""What transformers' processors do where their file says nothing."""
_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
)  # fmt: skip
_OTHER_STEPS = ("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis")
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def of_processor(given: Mapping[str, Any]) -> Json:
    """The settings of an image processor of transformers; empty where they have no plain form."""
    name = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    name = name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name in PLAIN:
        return dict(given)
    if name not in _USUAL or any(given.get(step) for step in _OTHER_STEPS):
        return {}
    found = {**_USUAL[name], **{key: value for key, value in given.items() if value is not None}}
    for key in ("size", "crop_size"):
        side = found.get(key)
        if isinstance(side, int):
            square = key == "crop_size" or name == "EfficientNet"
            found[key] = {"height": side, "width": side} if square else {"shortest_edge": side}
    if name == "ConvNext" and not _convnext(found):
        return {}
    if name == "EfficientNet":
        _efficientnet(found)
    return _plain(found)


def output(how: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of what settings that `of_processor` or `of_timm` gave make of an image; None where
    they do not say."""
    if not how:
        return None
    given = str(how.get("image_processor_type") or how.get("feature_extractor_type"))
    # Of the plain processors ViT's alone cuts nothing out where its file does not say so.
    crops = how.get("do_center_crop", not given.startswith("ViT"))
    size = how.get("crop_size" if crops else "size", 224)
    if isinstance(size, int):
        # A number is the shortest edge there, and the other one depends on the image.
        return (size, size) if crops or given.startswith(("ViT", "DeiT")) else None
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def _plain(found: Mapping[str, Any]) -> Json:
    return {"image_processor_type": "BitImageProcessor", **{key: found[key] for key in _KEYS if key in found}}


def _convnext(found: Json) -> bool:
    """Below 384 the shortest edge becomes size / crop_pct and the centre is cut out; from there on images
    are squeezed to a square. False where the size is another one."""
    side = found["size"].get("shortest_edge") if isinstance(found["size"], Mapping) else None
    if not isinstance(side, int) or found.get("do_center_crop"):
        return False
    found["do_center_crop"] = bool(found["do_resize"]) and side < 384
    if found["do_center_crop"]:
        found["crop_size"] = {"height": side, "width": side}
        found["size"] = {"shortest_edge": int(side / found["crop_pct"])}
    else:
        found["size"] = {"height": side, "width": side}
    return True


def _efficientnet(found: Json) -> None:
    """Values may be shifted by -1 when they are rescaled, and divided by the deviation once more."""
    mean, std = (
        value if isinstance(value, list) else [value] for value in (found["image_mean"], found["image_std"])
    )
    if not found["do_normalize"]:
        mean, std, twice = [0.0] * len(mean), [1.0] * len(std), std
    else:
        twice = std
    if found["do_rescale"] and found["rescale_offset"]:
        mean = [value + 1 for value in mean]
    if found["include_top"]:
        std = [one * other for one, other in zip(std, twice, strict=True)]
    found |= {"image_mean": mean, "image_std": std, "do_normalize": True}


def of_timm(given: Mapping[str, Any]) -> Json:
    """The settings of a timm model (`pretrained_cfg`); empty where they have no plain form. Where an odd
    number of pixels is cut off, timm's centre may lie one pixel off."""
    size, mode = given.get("input_size"), given.get("crop_mode") or "center"
    resample = _FILTERS.get(str(given.get("interpolation")))
    known = resample is not None and given.get("mean") and given.get("std") and mode in ("center", "squash")
    if not known or not isinstance(size, list) or len(size) != 3:
        return {}
    share = float(given.get("crop_pct") or 0.875)
    height, width = (math.floor(side / share) for side in size[1:])
    if mode == "center" and height != width:
        return {}
    edge: Json = {"shortest_edge": height} if mode == "center" else {"height": height, "width": width}
    return _plain({
        "do_resize": True, "size": edge, "resample": resample, "do_center_crop": True,
        "crop_size": {"height": size[1], "width": size[2]}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(given["mean"]), "image_std": list(given["std"]),
    })  # fmt: skip


def labels(config: Mapping[str, Any]) -> dict[str, str]:
    """The names of the classes, from "0" on; empty where there are none, or not for every class."""
    given = config.get("id2label")
    if isinstance(given, Mapping):
        named = {str(key): str(value) for key, value in given.items()}
    else:
        listed = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
        named = {str(place): str(name) for place, name in enumerate(listed or ())}
    complete = all(str(place) in named for place in range(len(named)))
    return {str(place): named[str(place)] for place in range(len(named))} if complete else {}

"""Reads and rewrites `preprocessor_config.json`, the settings of a model's image processor. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compression.anatomy.families.reader import is_whole
from compression.errors import PreprocessorInvalid
from compression.loading.config import refuse_code
from compression.loading.json_files import read_object, write_object
from compression.loading.sources import Files
from compression.preprocessing import PROCESSORS, Preprocessing, Size, complete, of_model

FILE = "preprocessor_config.json"
MAXIMUM_BYTES = 64 << 10

_TYPES = ("image_processor_type", "feature_extractor_type")
_TYPE = re.compile(r"([A-Za-z0-9]{1,60}?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)", re.ASCII)
_USUAL = {"vit": "ViT", "deit": "DeiT"}
# What changes the input in a way that is not carried out here, unless it is off.
_OTHER_STEPS = (
    "do_pad",
    "do_thumbnail",
    "do_align_long_axis",
    "do_reduce_labels",
    "do_flip_channel_order",
    "crop_pct",
)

_OTHER_SIZES = frozenset({"longest_edge", "max_height", "max_width"})


def read_preprocessor(
    files: Files, model_type: str, image: tuple[int, int, int]
) -> tuple[Preprocessing | None, dict[str, bytes]]:
    """The preprocessing of a model that takes images of the shape `image` (channels, height, width), and the
    files to store in place of those uploaded.

    None where the file asks for steps, or for a processor, that are not known: jobs must then say it
    themselves. Raises PreprocessorInvalid.
    """
    if FILE not in files:
        return of_model(*image[1:]), {}
    settings = read_object(files[FILE], FILE, MAXIMUM_BYTES, PreprocessorInvalid)
    refuse_code(settings, FILE, PreprocessorInvalid)
    kept = {key: settings[key] for key in Preprocessing.model_fields if settings.get(key) is not None}
    others = {key: kept.pop(key) for key in ("size", "crop_size") if _is_other_size(kept.get(key))}
    steps = {key: settings[key] for key in _OTHER_STEPS if _is_plain(settings.get(key))}
    named = {key: settings[key] for key in _TYPES if key in settings}
    for key, value in named.items():
        if not isinstance(value, str) or not _TYPE.fullmatch(value):
            raise PreprocessorInvalid(f"{FILE}: {key} is no name of an image processor.", pointer=f"/{key}")
    convert = {"do_convert_rgb": True} if settings.get("do_convert_rgb") is True else {}
    rewritten = {FILE: write_object({**kept, **others, **steps, **named, **convert})}
    processor = _processor(named, model_type)
    try:
        found = complete(kept, processor or "ViT")
    except ValueError as error:
        raise PreprocessorInvalid(f"{FILE}: {error}", pointer=FILE) from None
    known = processor is not None and not others and not any(steps.values())
    return found if known else None, rewritten


def _is_other_size(value: Any) -> bool:
    """Whether a size is one that transformers knows and that is not carried out here."""
    if not isinstance(value, dict) or not _OTHER_SIZES & value.keys():
        return False
    return value.keys() <= _OTHER_SIZES | Size.model_fields.keys() and all(
        is_whole(side) for side in value.values()
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, float) and 0 <= value <= 1)


def _processor(named: Mapping[str, str], model_type: str) -> str | None:
    if not named:
        return _USUAL.get(model_type, "ViT")
    found = _TYPE.fullmatch(next(iter(named.values())))
    assert found is not None
    return found[1] if found[1] in PROCESSORS else None

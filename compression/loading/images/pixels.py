"""From an image to the input of a model, as transformers' image processors make it. For the runner only.

Pillow decodes (only formats, sizes and pixel types that were checked) and resizes; what follows is
arithmetic.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from compression.errors import DatasetInvalid
from compression.loading.images.headers import NotAnImage, image_header
from compression.loading.images.limits import refuse
from compression.loading.images.reading import Pixels, Row
from compression.preprocessing import Preprocessing, Size

_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"})


def decode(row: Row, channels: int) -> Image.Image:
    """The image of a row, upright, in grey (1 channel) or RGB (3). Transparency is dropped.

    Raises DatasetInvalid that names the image.
    """
    if not isinstance(row.data, bytes):
        grey = row.data.shape[2] == 1
        return Image.fromarray(np.ascontiguousarray(row.data[:, :, 0] if grey else row.data)).convert(
            _MODES[channels]
        )
    data = row.data
    try:
        header = image_header(lambda count: data[:count])
    except NotAnImage as error:
        refuse(row.name, f"this image {error}")
    try:
        with Image.open(io.BytesIO(data), formats=[header.format]) as image:
            if image.size != (header.width, header.height):
                refuse(row.name, "this image has another size than its header says")
            if image.mode not in _EIGHT_BITS:
                refuse(row.name, "this image has more than 8 bits a channel; save it with 8")
            image.load()
            return ImageOps.exif_transpose(image).convert(_MODES[channels])
    except (DatasetInvalid, MemoryError):
        raise
    except Exception:  # decoders of damaged images raise anything
        raise DatasetInvalid(f"{row.name}: this image cannot be decoded: it is damaged or cut off.") from None


def prepare(image: Image.Image, how: Preprocessing) -> Pixels:
    """The image resized and cropped, uint8 [c, h, w]; `how` is complete."""
    if how.do_resize and how.size is not None:
        image = image.resize(_resized(image.size, how.size), resample=Image.Resampling(how.resample or 0))
    pixels: Pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if how.do_center_crop and how.crop_size is not None:
        pixels = centre(pixels, how.crop_size.height or 1, how.crop_size.width or 1)
    return np.array(pixels, order="C")


def _resized(size: tuple[int, int], wanted: Size) -> tuple[int, int]:
    """(width, height) after resizing an image of (width, height)."""
    if wanted.shortest_edge is None:
        return wanted.width or 1, wanted.height or 1
    width, height = size
    other = int(wanted.shortest_edge * max(size) / min(size))
    return (wanted.shortest_edge, other) if width <= height else (other, wanted.shortest_edge)


def centre(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle of an image [c, h, w], cut out, or laid on black where it is too small."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + height, left : left + width]
    tall, wide = max(height, pixels.shape[1]), max(width, pixels.shape[2])
    down, right = math.ceil((tall - pixels.shape[1]) / 2), math.ceil((wide - pixels.shape[2]) / 2)
    canvas = np.zeros((pixels.shape[0], tall, wide), np.uint8)
    canvas[:, down : down + pixels.shape[1], right : right + pixels.shape[2]] = pixels
    top, left = top + down, left + right
    return canvas[:, max(0, top) : top + height, max(0, left) : left + width]


def normalise(pixels: Tensor, how: Preprocessing) -> Tensor:
    """float32 [b, c, h, w] from uint8 [b, c, h, w]: times the factor, minus the mean, over the deviation."""
    values = pixels.to(torch.float32)
    if how.do_rescale:
        values *= how.rescale_factor or 1.0
    if how.do_normalize:
        values = (values - _channelwise(how.image_mean)) / _channelwise(how.image_std)
    return values


def _channelwise(numbers: Any) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float32).view(1, -1, 1, 1)

"""Random changes of images while a model learns from them, before they are normalised. For the runner only.

What happens to an image follows from (seed, epoch, number of the image) alone, so that a run that was killed
sees the same images when it goes on, whatever was decoded before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.loading.images.reading import Pixels

_GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


@dataclass(frozen=True)
class Augmentation:
    """Which changes are made; all off by default. Lengths are shares of an image's sides.

    crop_padding  the image is laid on black that is so much larger on every side, and a part of its own size
                  cut out anywhere (0.125 of 32 pixels: 4, as He et al. 2015, arXiv 1512.03385)
    flip          left and right are exchanged for half of the images
    jitter        brightness, contrast and saturation are each multiplied by a number in [1 - jitter,
                  1 + jitter]
    cutout        a square of this share of the shorter side is grey, its centre anywhere in the image
                  (DeVries and Taylor 2017, arXiv 1708.04552; grey 128 is near the mean of usual images)
    """

    crop_padding: float = 0.0
    flip: bool = False
    jitter: float = 0.0
    cutout: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return bool(self.crop_padding or self.flip or self.jitter or self.cutout)

    def apply(self, pixels: Pixels, seed: int, epoch: int, number: int) -> Pixels:
        """The image, uint8 [c, h, w], as it is seen in an epoch; the given array stays as it is."""
        if not self.changes:
            return pixels
        drawn = uniforms(seed, epoch, number)
        if self.crop_padding:
            pixels = _crop(pixels, self.crop_padding, drawn[0], drawn[1])
        if self.flip and drawn[2] < 0.5:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        if self.jitter:
            pixels = _jitter(pixels, 1 + self.jitter * (2 * drawn[3:6] - 1))
        if self.cutout:
            pixels = _cutout(pixels, self.cutout, drawn[6], drawn[7])
        return pixels


def uniforms(seed: int, epoch: int, number: int) -> NDArray[np.float64]:
    """Eight numbers in [0, 1), the same ones for the same arguments: 32 bits of a hash each. Every kind of
    change has its own, so that turning one on leaves the others as they were."""
    digest = hashlib.sha256(f"augmentation\x1f{seed}\x1f{epoch}\x1f{number}".encode()).digest()
    return np.frombuffer(digest, "<u4").astype(np.float64) / 2.0**32


def _crop(pixels: Pixels, share: float, top: float, left: float) -> Pixels:
    _, height, width = pixels.shape
    down, right = round(share * height), round(share * width)
    padded = np.pad(pixels, ((0, 0), (down, down), (right, right)))
    first, start = int(top * (2 * down + 1)), int(left * (2 * right + 1))
    found: Pixels = np.ascontiguousarray(padded[:, first : first + height, start : start + width])
    return found


def _jitter(pixels: Pixels, factors: NDArray[np.float64]) -> Pixels:
    """Brightness (towards black), contrast (towards the mean of all pixels) and saturation (towards each
    pixel's grey), in this order, as torchvision defines them; grey images have no saturation."""
    brightness, contrast, saturation = factors.tolist()
    values = np.clip(pixels.astype(np.float64) * brightness, 0, 255)
    mean = float(_grey(values).mean())
    values = np.clip(mean + contrast * (values - mean), 0, 255)
    if len(values) == len(_GREY):
        grey = _grey(values)
        values = np.clip(grey + saturation * (values - grey), 0, 255)
    found: Pixels = np.rint(values).astype(np.uint8)
    return found


def _grey(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) != len(_GREY):
        return values
    grey: NDArray[np.float64] = np.tensordot(_GREY, values, axes=1)[None]
    return grey


def _cutout(pixels: Pixels, share: float, top: float, left: float) -> Pixels:
    _, height, width = pixels.shape
    side = max(1, round(share * min(height, width)))
    first, start = int(top * height) - side // 2, int(left * width) - side // 2
    changed = pixels.copy()
    changed[:, max(0, first) : max(0, first + side), max(0, start) : max(0, start + side)] = 128
    return changed

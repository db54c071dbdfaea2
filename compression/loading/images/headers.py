"""Format and size of an encoded image, from its first bytes alone. No torch and no image library.

A few bytes of an image can claim any number of pixels, so this is asked before anything decodes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compression.loading.images.limits import MAXIMUM_PIXELS, MAXIMUM_SIDE

PREFIX = 4096
"""Bytes that are enough for every format but a JPEG with much metadata before its frame."""
MAXIMUM_PREFIX = 1 << 20

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""Ends of file names that mean an image, and its format as Pillow calls it."""

_WITHOUT_SIZE = frozenset({0xC4, 0xC8, 0xCC})  # tables and extensions among the SOF markers
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers that no length follows


class NotAnImage(ValueError):
    """The bytes are no image that is taken in; the message completes "this image ..."."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """`format` as Pillow calls it; width and height in pixels."""

    format: str
    width: int
    height: int


def image_header(read: Callable[[int], bytes]) -> ImageHeader:
    """Format and size of an image; `read(n)` gives its first n bytes, or all when there are fewer.

    Raises NotAnImage for another format, a header that is cut off, and sizes beyond MAXIMUM_PIXELS.
    """
    data = read(PREFIX)
    found = _header(data)
    if found is None and data[:2] == b"\xff\xd8" and len(data) >= PREFIX:
        found = _header(read(MAXIMUM_PREFIX))
    if found is None:
        raise NotAnImage("has no complete header: it is damaged or cut off")
    if found.width < 1 or found.height < 1:
        raise NotAnImage(f"claims to have {found.width} x {found.height} pixels")
    if max(found.width, found.height) > MAXIMUM_SIDE or found.width * found.height > MAXIMUM_PIXELS:
        raise NotAnImage(
            f"has {found.width:,} x {found.height:,} pixels, more than the {MAXIMUM_PIXELS:,} "
            "allowed; make it smaller"
        )
    return found


def _header(data: bytes) -> ImageHeader | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    raise NotAnImage("is no PNG, JPEG, WebP or BMP")


def _png(data: bytes) -> ImageHeader | None:
    if len(data) < 33:
        return None
    if data[8:16] != b"\x00\x00\x00\rIHDR":
        raise NotAnImage("is a PNG that does not begin with its header")
    return ImageHeader("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _jpeg(data: bytes) -> ImageHeader | None:
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise NotAnImage("is a damaged JPEG")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _WITHOUT_SIZE:
            if place + 9 > len(data):
                return None
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return ImageHeader("JPEG", int.from_bytes(width, "big"), int.from_bytes(height, "big"))
        elif marker in (0xD9, 0xDA):
            raise NotAnImage("is a JPEG without a frame")
        else:
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            if length < 2:
                raise NotAnImage("is a damaged JPEG")
            place += 2 + length
    return None


def _webp(data: bytes) -> ImageHeader | None:
    kind = data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise NotAnImage("is an animation")
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    else:
        raise NotAnImage("is a WebP of an unknown kind")
    return ImageHeader("WEBP", width, height)


def _bmp(data: bytes) -> ImageHeader | None:
    if len(data) < 26:
        return None
    if int.from_bytes(data[14:18], "little") < 40:
        raise NotAnImage("is a BMP of a kind that is not taken in; save it as PNG")
    width = int.from_bytes(data[18:22], "little", signed=True)
    height = abs(int.from_bytes(data[22:26], "little", signed=True))
    return ImageHeader("BMP", width, height)

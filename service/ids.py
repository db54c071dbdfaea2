"""Identifiers: a prefix that names the kind, and a UUIDv7 in base32, so that ids sort by time of creation."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Final

MODEL: Final = "mdl"
DATASET: Final = "dst"
UPLOAD: Final = "upl"
JOB: Final = "job"
ARTIFACT: Final = "art"
KEY: Final = "key"
TENANT: Final = "ten"
REQUEST: Final = "req"

# Crockford's digits in lower case: their ASCII order is their numeric order, which keyset pages rely on.
_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH: Final = 26

_lock = threading.Lock()
_last = 0


def _tick() -> int:
    """60 bits of time (48 of Unix milliseconds, 12 of the fraction), strictly increasing in this process."""
    global _last
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    now = (milliseconds << 12) | (rest * 4096 // 1_000_000)
    with _lock:
        _last = max(now, _last + 1)
        return _last


def uuid7() -> int:
    """A UUID of version 7 (RFC 9562, method 3: the sub-millisecond clock in `rand_a`), 128 bits."""
    tick = _tick()
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    return (milliseconds << 80) | (0x7 << 76) | (fraction << 64) | (0b10 << 62) | secrets.randbits(62)


def new_id(prefix: str) -> str:
    """A fresh id such as `job_01jd7v1w3k...`: `prefix`, an underscore and 26 characters."""
    value = uuid7()
    digits = []
    for _ in range(_LENGTH):
        value, digit = divmod(value, 32)
        digits.append(_DIGITS[digit])
    return f"{prefix}_{''.join(reversed(digits))}"


def is_id(value: str, prefix: str) -> bool:
    """Whether `value` has the form of an id of the kind `prefix` (says nothing of its existence)."""
    head, _, tail = value.partition("_")
    return head == prefix and len(tail) == _LENGTH and all(character in _DIGITS for character in tail)

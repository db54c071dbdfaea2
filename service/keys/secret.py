"""The form of API keys: `sec_`, 43 random base62 characters (256 bits), and 6 of CRC-32.

The checksum lets secret scanners and this service tell a mistyped key from an unknown one without a
look-up. Keys have full entropy, so a plain keyed hash protects them: there is nothing to guess that a slow
hash would slow down.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib
from typing import Final

PREFIX: Final = "sec_"
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM: Final = 43
_CHECKSUM: Final = 6
_DOMAIN: Final = b"secateur/api-key/1"


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM):
        value, digit = divmod(value, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def generate() -> str:
    """A fresh key."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether `secret` has the form and the checksum of a key."""
    body, checksum = secret[:-_CHECKSUM], secret[-_CHECKSUM:]
    if len(body) != len(PREFIX) + _RANDOM or not body.startswith(PREFIX) or not secret.isascii():
        return False
    return hmac.compare_digest(_checksum(body), checksum)


def digest(secret: str) -> str:
    """What is stored of a key: HMAC-SHA-256 in hex, under a key that only separates it from other hashes."""
    return hmac.new(_DOMAIN, secret.encode(), hashlib.sha256).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Whether `secret` has the digest `stored`, compared in constant time."""
    return hmac.compare_digest(digest(secret), stored)

"""Strings of strangers: what somebody probably meant, and what is no text at all. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_SURROGATE = re.compile("[\ud800-\udfff]")


def broken_text(text: str) -> bool:
    """Whether a string holds half of a surrogate pair, which is no character and cannot be written as
    UTF-8."""
    return _SURROGATE.search(text) is not None


def closest(word: str, valid: Iterable[str]) -> str:
    """Ends a message about an unknown word: "did you mean 'x'? Valid: 'x', 'y'", the list cut after
    twenty."""
    names = [str(name) for name in valid]
    listed = ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")
    folded = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word[:80].lower(), list(folded), n=1, cutoff=0.6)
    if not names:
        return "nothing is valid here"
    return f"did you mean '{folded[found[0]]}'? Valid: {listed}" if found else f"valid: {listed}"

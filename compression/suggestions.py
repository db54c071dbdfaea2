"""Near misses: what somebody probably meant. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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

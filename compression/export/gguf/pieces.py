"""BPE that was made from a SentencePiece model, and the scores that its pieces had. No torch.

llama.cpp's `llama` tokenizer joins, again and again, the two neighbours whose union is the piece with the
highest score, the leftmost first. BPE joins the pair with the lowest rank. Both do the same if every way to
make a piece of two others is a merge, and the merges of one piece have ranks next to each other, as
conversion from SentencePiece leaves them; then minus the place of a piece among the merges is its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

_SPACE = "▁"


def prefix_space(data: Mapping[str, Any]) -> bool | None:
    """Whether a space goes before a text, by a tokenizer.json that writes spaces as U+2581; None if it does
    anything else."""
    steps = _sequence(data.get("normalizer"), "normalizers")
    splits = _sequence(data.get("pre_tokenizer"), "pretokenizers")
    prepends = {"type": "Prepend", "prepend": _SPACE}
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if steps == [prepends, replaces] and not splits:
        return True
    # Gemma splits at spaces, of which its normaliser has left none.
    at_spaces = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    if steps == [replaces] and splits in ([], [at_spaces]):
        return False
    if steps or len(splits) != 1 or splits[0].get("type") != "Metaspace":
        return None
    if splits[0].get("replacement") != _SPACE or splits[0].get("split", True):
        return None
    return {"first": True, "always": True, "never": False}.get(splits[0].get("prepend_scheme", "always"))


def _sequence(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part.get(key) or []) if part.get("type") == "Sequence" else [part]


def scores(model: Mapping[str, Any], added: Set[str]) -> dict[str, float] | str:
    """Score of every piece that merges make; or, as the end of a sentence, why the merges are not those of a
    SentencePiece model. `added` are tokens that no merge needs to make."""
    vocabulary = model["vocab"]
    pairs = [
        tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model.get("merges") or []
    ]
    found: dict[str, float] = {}
    last = ""
    for left, right in pairs:
        piece = left + right
        if piece != last and piece in found:
            return f"merges to {piece!r} at ranks apart, so that its pieces have no scores"
        found.setdefault(piece, -float(len(found)))
        last = piece
    known = set(pairs)
    for piece in vocabulary:
        if piece in added:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in known:
                return f"does not merge {left!r} and {right!r} although {piece!r} is a token"
    return found

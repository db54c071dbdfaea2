"""How BPE makes a token: the two parts of its last merge, and so on down to single characters. No torch.

BPE takes the characters of a word and, as long as two neighbours are a merge, joins those whose merge ranks
lowest (the leftmost of equals). Let a word end as the tokens t1 ... tn. No merge crossed a border between
them, so what happened inside ti is exactly what happens to the text of ti alone: the lowest merge of the
whole
word, whenever it lies in ti, is the lowest in ti too. So a token is always made in one way, its derivation,
wherever it occurs, and a token whose text alone becomes something else never occurs at all.

Cut the list of merges, in its order, and let all merges of the derivations of t1 ... tn be left. Then the
word
still ends as t1 ... tn: at every step the merge that ranked lowest is still there, all others that could be
applied are a part of those before, and at the end there was none to apply. Therefore a set of tokens that
has, with
every token, both parts of its last merge (a closed set) and the merges among its members segments every text
as before of which all tokens are in the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compression.vocabulary.tokenizer_file import BPE, TokenizerFile

Parts = Mapping[int, tuple[int, int]]
"""Of every token that merges make: the ids of the two parts of its last merge."""


def derivations(tokenizer: TokenizerFile) -> dict[int, tuple[int, int]]:
    """The last merges of all tokens; nothing for Unigram and WordPiece, whose tokens stand alone."""
    if tokenizer.kind != BPE:
        return {}
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    found: dict[int, tuple[int, int]] = {}
    for token, number in tokenizer.vocabulary.items():
        last = last_merge(token, ranks, tokenizer.vocabulary)
        if last is not None:
            found[number] = (tokenizer.vocabulary[last[0]], tokenizer.vocabulary[last[1]])
    return found


def last_merge(
    token: str, ranks: Mapping[tuple[str, str], int], vocabulary: Mapping[str, int]
) -> tuple[str, str] | None:
    """The last merge by which the text of a token becomes the token; None if it is a character or never
    becomes one."""
    symbols = list(token)
    if any(symbol not in vocabulary for symbol in symbols):
        return None
    while len(symbols) > 1:
        place, rank = -1, len(ranks)
        for at in range(len(symbols) - 1):
            here = ranks.get((symbols[at], symbols[at + 1]))
            if here is not None and (place < 0 or here < rank):
                place, rank = at, here
        if place < 0:
            return None
        if len(symbols) == 2:
            return symbols[0], symbols[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return None


def missing(token: int, parts: Parts, kept: set[int]) -> set[int]:
    """The token and all tokens on the way to it, but those that are kept (a closed set)."""
    found: set[int] = set()
    stack = [token]
    while stack:
        one = stack.pop()
        if one not in kept and one not in found:
            found.add(one)
            stack.extend(parts.get(one, ()))
    return found


def closed(tokens: Iterable[int], parts: Parts) -> set[int]:
    """The tokens with all that is on the way to them."""
    found: set[int] = set()
    for token in tokens:
        found |= missing(token, parts, found)
    return found


def fill(order: Sequence[int], count: int, parts: Parts, kept: set[int]) -> set[int]:
    """The closed set `kept` with tokens in this order, each with what is on the way to it, up to exactly
    `count`
    tokens (as many as there are, if fewer). A token that would bring too many waits for the next round; every
    round takes one, as some token always has both its parts in the set.
    """
    found = set(kept)
    waiting = [token for token in order if token not in found]
    while waiting and len(found) < count:
        left = []
        for token in waiting:
            need = missing(token, parts, found)
            if len(found) + len(need) <= count:
                found |= need
            else:
                left.append(token)
        waiting = left
    return found

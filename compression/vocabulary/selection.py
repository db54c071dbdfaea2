"""Which rows of a vocabulary stay, and in which order they are written. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compression.vocabulary.derivations import closed, derivations, fill
from compression.vocabulary.tokenizer_file import TokenizerFile, refuse


@dataclass(frozen=True)
class Bounds:
    """What cannot go: `required` are the rows (a closed set), of which so many belong to the `alphabet` and
    so many more to `specials`."""

    required: frozenset[int]
    specials: int
    alphabet: int


class Vocabulary:
    """The rows of a model's vocabulary with its tokenizer. `rows` are those of the embedding table; rows
    without a token are allowed. Raises TokenizerInvalid if a token has no row."""

    def __init__(self, tokenizer: TokenizerFile, rows: int) -> None:
        self.tokenizer = tokenizer
        self.rows = rows
        self.parts = derivations(tokenizer)
        highest = max(tokenizer.ids().values(), default=-1)
        if highest >= rows:
            refuse(f"token {highest} has no row in the model's vocabulary of {rows}")

    def bounds(self, named: Iterable[int]) -> Bounds:
        """What must stay: the tokenizer's special and added tokens, the ids that are `named` by the model's
        settings, and what every text is encoded with."""
        alphabet = closed(self.tokenizer.alphabet(), self.parts)
        required = alphabet | closed({*self.tokenizer.specials(), *named}, self.parts)
        return Bounds(frozenset(required), len(required) - len(alphabet), len(alphabet))

    def keep(self, worth: Sequence[float], count: int, required: Iterable[int]) -> list[int]:
        """`count` rows: those required, then tokens by their worth, the largest first (of equals the lowest
        id), each
        with the tokens on the way to it, then rows without a token. ValueError if more are required.

        They come in the order in which they are written: the tokens of the tokenizer's model, the added
        tokens that
        it does not have (their ids are counted on by the tokenizers library), rows without a token; each by
        id.
        """
        stay = closed(required, self.parts)
        if len(stay) > count:
            raise ValueError(f"{len(stay)} rows are required, more than {count}")
        tokens = sorted(self.tokenizer.ids().values(), key=lambda number: (-worth[number], number))
        stay = fill(tokens, count, self.parts, stay)
        known = set(tokens)
        bare = [row for row in range(self.rows) if row not in known and row not in stay]
        stay |= set(bare[: count - len(stay)])
        outside = set(self.tokenizer.outside.values())
        return sorted(stay, key=lambda row: (2 if row not in known else 1 if row in outside else 0, row))

"""Patterns that name weight sites. No torch.

A pattern is a glob (`*`, `?`, `[ab]`) on the whole name of a site, with or without its `.weight`, or, after
`re:`, a regular expression that may be found anywhere in the name. Patterns come from strangers and are
matched in the gateway, so regular expressions run on pydantic's engine, which takes time linear in the text
(no look-around, no back-references).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

_WEIGHT = ".weight"


@lru_cache(maxsize=256)
def _expression(source: str) -> TypeAdapter[str]:
    kind = Annotated[str, StringConstraints(pattern=source)]
    return TypeAdapter(kind, config=ConfigDict(regex_engine="rust-regex"))


def check_pattern(pattern: str) -> None:
    """Raises ValueError if the pattern can never be used, saying why."""
    if pattern == "re:":
        raise ValueError("the regular expression after re: is empty")
    if pattern.startswith("re:"):
        try:
            _expression(pattern[3:])
        except SchemaError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{pattern!r} is no regular expression that can be used here: {reason}"
            ) from None


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a weight site."""
    if pattern.startswith("re:"):
        try:
            _expression(pattern[3:]).validate_python(name)
        except ValidationError:
            return False
        return True
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(_WEIGHT), pattern)


def ignored(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that at least one of the patterns names."""
    return {name for name in names if any(matches(pattern, name) for pattern in patterns)}

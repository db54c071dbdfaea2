"""One registry per axis of the engine: a new method is one new file plus its registration.

`Registry.register` is used as a decorator on a class (an instance of it is kept) or called with an instance.
`discover` imports every module of a package, so that registering is all that a new file has to do.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from compression.errors import CompressionError
from compression.suggestions import closest


class Entry(Protocol):
    """What every registered thing has: a name that jobs use and a summary that people read."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...


E = TypeVar("E", bound=Entry)
C = TypeVar("C")


class UnknownEntry(CompressionError):
    """A name that an axis does not have; the message names the nearest one that it has."""

    code = "unknown_name"


class Registry(Generic[E]):
    """The named entries of one axis, in order of name."""

    def __init__(self, axis: str) -> None:
        self.axis = axis
        self._entries: dict[str, E] = {}

    def register(self, entry: C) -> C:
        """Keep an entry (or an instance of a class); a name used twice is a programming error."""
        instance: E = entry() if isinstance(entry, type) else entry  # type: ignore[assignment]
        if instance.name in self._entries:
            raise ValueError(f"{self.axis} {instance.name!r} is registered twice")
        self._entries[instance.name] = instance
        return entry

    def __getitem__(self, name: str) -> E:
        """The entry of that name; UnknownEntry names the nearest one otherwise."""
        if name in self._entries:
            return self._entries[name]
        raise UnknownEntry(f"there is no {self.axis} {name!r}: {closest(name, self.names())}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[E]:
        return (self._entries[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)


def discover(package: str, path: Iterable[str]) -> None:
    """Import every module of `package`, so that each registers what it defines. Packages inside it are axes
    of their own."""
    for module in sorted(info.name for info in pkgutil.iter_modules(path) if not info.ispkg):
        importlib.import_module(f"{package}.{module}")

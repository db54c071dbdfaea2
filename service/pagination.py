"""Keyset pages: `?limit&after`, answered as `{"data", "has_more", "next"}`. No totals: they scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

DEFAULT_LIMIT: Final = 20
MAXIMUM_LIMIT: Final = 100

Row = TypeVar("Row")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page of a list: its rows, whether more follow, and the value of `after` that continues it."""

    data: Sequence[Row]
    has_more: bool
    next: str | None

    def map(self, convert: Callable[[Row], Other]) -> Page[Other]:
        """The same page with every row converted."""
        return Page([convert(row) for row in self.data], self.has_more, self.next)


def paginate(
    session: Session,
    statement: Select[Row],
    key: InstrumentedAttribute[str],
    *,
    after: str | None = None,
    limit: int = DEFAULT_LIMIT,
    newest_first: bool = True,
) -> Page[Row]:
    """At most `limit` (1 to 100) rows of `statement` behind the key `after`, ordered by the unique `key`.

    A page is stable: rows added meanwhile are newer than `after` and never shift it. An `after` that names no
    row is a position like any other, so deleting the last row of a page breaks nothing.
    """
    limit = max(1, min(limit, MAXIMUM_LIMIT))
    if after is not None:
        statement = statement.where(key < after if newest_first else key > after)
    ordered = statement.order_by(key.desc() if newest_first else key.asc()).limit(limit + 1)
    rows: list[Any] = list(session.scalars(ordered))
    page = rows[:limit]
    has_more = len(rows) > limit
    return Page(page, has_more, getattr(page[-1], key.key) if has_more else None)

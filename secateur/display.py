"""How values look in a terminal. Colour and live displays only where a person is watching."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Where nobody is watching, lines are as long as they have to be.
output = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 240)
"""Results: standard output."""

notes = Console(stderr=True, soft_wrap=True, highlight=False)
"""Progress, remarks and errors: standard error, so that results can be piped."""


def show_json(value: Any) -> None:
    """Print a value for machines."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_error(error: object) -> None:
    """Print an error in words, without reading its text as markup."""
    notes.print(Text("error: ", style="bold red"), Text(str(error)), sep="", end="\n")


def remark(text: str) -> None:
    """Print a line that is not a result."""
    notes.print(Text(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> Table:
    """A plain table; the columns counted in `right` are aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(text(cell)) for cell in row))
    return made


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()
) -> None:
    """Print a table; without a terminal, lines end with their last word."""
    made = table(columns, rows, right=right)
    if output.is_terminal:
        output.print(made)
        return
    with output.capture() as captured:
        output.print(made)
    for line in captured.get().splitlines():
        output.print(line.rstrip(), markup=False)


def text(value: object) -> str:
    """A cell: a dash for nothing, plain text otherwise."""
    if value is None or value == "":
        return "-"
    return str(value)


def size(count: float | None) -> str:
    """A number of bytes in units of 1000, as disks and networks count."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{int(count)} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count:.0f} TB"


def number(count: float | None) -> str:
    """A count with thousands marked; an inexact one with four significant digits."""
    if count is None:
        return "-"
    if float(count).is_integer() and abs(count) < 1e15:
        return f"{int(count):,}"
    return f"{count:.4g}"


def seconds(count: float | None) -> str:
    """A duration: 0.8 ms, 3.2 s, 4:05, 1:02:03."""
    if count is None:
        return "-"
    if count < 1:
        return f"{count * 1000:.3g} ms"
    if count < 60:
        return f"{count:.3g} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ratio(after: float | None, before: float | None) -> str:
    """after / before as a factor, where that means something."""
    if after is None or not before:
        return "-"
    return f"{after / before:.3f}x"


def moment(value: str | None) -> str:
    """A time of the service without its fraction."""
    return value[:19].replace("T", " ") if value else "-"

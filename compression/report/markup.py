"""Small pieces of HTML; every text that goes in is escaped here. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A table cell: text, and how it looks (``n`` number, ``good``, ``bad``, ``code``, ``wide``)."""

    text: str
    css: str = ""


def number(text: str, css: str = "") -> Cell:
    """A cell with a number, set to the right."""
    return Cell(text, f"n {css}".strip())


def _cell(cell: Cell | str, tag: str, label: str = "") -> str:
    found = cell if isinstance(cell, Cell) else Cell(cell)
    names = [name for name in found.css.split() if name != "code"]
    css = f' class="{" ".join(names)}"' if names else ""
    text = escape(found.text)
    if "code" in found.css.split():
        text = f"<code>{text}</code>"
    scope = ' scope="row"' if tag == "th" else ""
    data = f' data-label="{escape(label)}"' if label else ""
    return f"<{tag}{css}{scope}{data}>{text}</{tag}>"


def table(
    head: Sequence[Cell | str],
    rows: Sequence[Sequence[Cell | str]],
    caption: str = "",
    *,
    stack: bool = False,
) -> str:
    """A table that scrolls sideways by itself on a narrow page; the first cell of a row heads it.

    With ``stack`` a narrow page shows each row as a block instead, every cell under its column's title.
    """
    if not rows:
        return ""
    names = [cell.text if isinstance(cell, Cell) else cell for cell in head]
    titles = "".join(_cell(cell, "th").replace('scope="row"', 'scope="col"') for cell in head)
    body = ""
    for row in rows:
        cells = [
            _cell(cell, "td", name if stack else "") for cell, name in zip(row[1:], names[1:], strict=True)
        ]
        body += f"<tr>{_cell(row[0], 'th')}{''.join(cells)}</tr>"
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table{" class=stack" if stack else ""}>{told}'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(title: str, svg: str, caption: str = "", key: Sequence[str] = ()) -> str:
    """A plot under its title, with a key of the series it shows."""
    if not svg:
        return ""
    names = "".join(f'<li><i class="{name}"></i>{name}</li>' for name in key)
    listed = f'<ul class="key">{names}</ul>' if names else ""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{listed}{svg}{told}</figure>"


def section(title: str, *parts: str) -> str:
    """A titled part of the page; nothing when it has no content."""
    content = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def tile(label: str, value: str, under: str = "", css: str = "") -> str:
    """One main figure."""
    texts = f"<span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(under)}</span>"
    return f'<div class="{f"tile {css}".strip()}">{texts}</div>'


def folded(title: str, content: str) -> str:
    """A part that opens on demand (and is open in print)."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def listing(texts: Sequence[str]) -> str:
    """Sentences as a list on a card."""
    return '<ul class="card notes">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"

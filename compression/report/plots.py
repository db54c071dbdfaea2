"""Plots of a report as inline SVG, drawn 340 units wide so that their text stays readable on a phone.

Every plot says its figures in its labels, so that nothing is told by colour alone; ``role="img"`` and a title
tell them to those who cannot see it. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from html import escape

WIDTH = 340.0
Format = Callable[[float | None], str]
Bar = tuple[str, float | None]
"""(series: dense, pruned or recovered; value)."""


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{place}{kind}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, css: str) -> str:
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" '
        f'height="{max(height, 0.0):.1f}" rx="1.5"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, css: str = "axis") -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def grouped_bars(title: str, groups: Sequence[tuple[str, Sequence[Bar], Format]]) -> str:
    """Horizontal bars in groups, each group on its own scale; a missing value is said, not drawn."""
    parts: list[str] = []
    y = 0.0
    for name, bars, form in groups:
        if name:
            y += 14
            parts.append(_text(0, y, name))
        y += 5
        top = max((abs(value) for _, value in bars if value is not None), default=0.0)
        for series, value in bars:
            length = 0.0 if value is None or top == 0 else abs(value) / top * (WIDTH - 76)
            parts.append(_rect(0, y, max(length, 1.0), 11, series))
            label = "not finite" if value is None else form(value)
            parts.append(_text(max(length, 1.0) + 6, y + 9.2, label))
            y += 14
        y += 5
    return _svg(y, title, parts)


def columns(
    title: str,
    values: Sequence[tuple[str, float | None]],
    form: Format,
    *,
    top: float | None = None,
    chosen: Collection[str] = (),
) -> str:
    """Vertical bars, one an entry, with a scale on the left; labels are thinned where they would collide.

    ``top`` fixes the scale. With ``chosen`` bars every other one is drawn in the colour of the dense model.
    """
    left, height, base = 38.0, 150.0, 128.0
    known = [value for _, value in values if value is not None]
    limit = top if top is not None else max(known, default=0.0) or 1.0
    step = (WIDTH - left) / max(1, len(values))
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = base - share * (base - 12)
        parts += [_line(left, y, WIDTH, y), _text(left - 5, y + 3.5, form(limit * share), "end", "soft")]
    every = max(1, -(-len(values) * 14 // int(WIDTH - left)))
    for number, (label, value) in enumerate(values):
        x = left + number * step
        if value is not None:
            tall = min(value / limit, 1.0) * (base - 12)
            css = "pruned" if not chosen or label in chosen else "dense"
            parts.append(_rect(x + step * 0.14, base - tall, step * 0.72, tall, css))
        if number % every == 0:
            parts.append(_text(x + step / 2, base + 12, label, "middle", "soft"))
    return _svg(height, title, parts)


def ranges(title: str, rows: Sequence[tuple[str, str, dict[str, float]]], form: Format) -> str:
    """Horizontal bars to the median with a whisker from the 10th to the 90th percentile.

    Rows are (label, series, {median, p10, p90}); rows of one label share a scale.
    """
    parts: list[str] = []
    y, last = 0.0, None
    for label, series, times in rows:
        if label != last:
            y += 14 if last is None else 20
            parts.append(_text(0, y, label))
            y += 5
            last = label
        top = max(other["p90"] for name, _, other in rows if name == label) or 1.0
        scale = (WIDTH - 92) / top
        parts.append(_rect(0, y, times["median"] * scale, 11, series))
        for at in ("p10", "p90"):
            parts.append(_line(times[at] * scale, y + 2.5, times[at] * scale, y + 8.5, "whisker"))
        parts.append(_line(times["p10"] * scale, y + 5.5, times["p90"] * scale, y + 5.5, "whisker"))
        parts.append(_text(times["p90"] * scale + 6, y + 9.2, form(times["median"])))
        y += 15
    return _svg(y + 3, title, parts)


def curves(title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], form: Format) -> str:
    """Lines over steps; the scale runs from the smallest to the largest value."""
    left, height, base = 44.0, 160.0, 132.0
    points = [point for _, line in series for point in line]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1.0
    last = max(x for x, _ in points) or 1.0
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = base - share * (base - 12)
        parts += [
            _line(left, y, WIDTH, y),
            _text(left - 5, y + 3.5, form(low + (high - low) * share), "end", "soft"),
        ]
    for css, line in series:
        place = " ".join(
            f"{left + x / last * (WIDTH - left - 4):.1f},{base - (y - low) / (high - low) * (base - 12):.1f}"
            for x, y in line
        )
        parts.append(f'<polyline class="line {css}" points="{place}"/>')
    parts += [
        _text(left, base + 14, "0", css="soft"),
        _text(WIDTH, base + 14, f"step {last:.0f}", "end", "soft"),
    ]
    return _svg(height, title, parts)

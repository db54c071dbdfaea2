"""Numbers as people read them. Free of torch."""

from __future__ import annotations

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count_text(value: float | None) -> str:
    """5475584 -> "5.48 M"."""
    if value is None:
        return "–"
    for size, unit in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) / size < 999.5 else f"{value / size:.0f} {unit}"
    return f"{value:g}"


def bytes_text(value: float | None) -> str:
    """21908384 -> "21.9 MB" (powers of ten)."""
    if value is None:
        return "–"
    return (
        f"{value:.0f} B"
        if abs(value) < 1000
        else count_text(value).replace("k", "kB") + ("" if abs(value) < 1e6 else "B")
    )


def seconds_text(value: float | None) -> str:
    """0.0421 -> "42.1 ms"."""
    if value is None:
        return "–"
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min"


def number_text(value: float | None) -> str:
    """Four significant digits; a dash for no number."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """0.5 -> "50%"; one decimal where it says something."""
    if value is None:
        return "–"
    text = f"{value * 100:.1f}".rstrip("0").rstrip(".")
    return f"{text}%"


def signed_percent(value: float | None) -> str:
    """A change in percentage points: 0.021 -> "+2.1"."""
    return "–" if value is None else f"{value * 100:+.1f}"

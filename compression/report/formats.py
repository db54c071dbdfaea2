"""Numbers as people read them. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _scaled(value: float, unit: str) -> str:
    for size, prefix in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()


def count_text(value: float | None) -> str:
    """5475584 -> "5.48 M"."""
    return "–" if value is None else _scaled(value, "")


def bytes_text(value: float | None) -> str:
    """21908384 -> "21.9 MB" (powers of ten)."""
    return "–" if value is None else _scaled(value, "B")


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


def threads_text(count: int | None) -> str:
    """1 -> "1 thread"."""
    return "threads not stated" if count is None else f"{count} thread{'' if count == 1 else 's'}"


def runs_text(numbers: Sequence[int]) -> str:
    """Ascending whole numbers, such as "2 to 4, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in parts)

"""Which formats of models jobs can be asked for. No torch."""

from __future__ import annotations

from compression.errors import FormatNotPrunable

FORMATS = ("transformers", "onnx")


def check_prunable(format: str | None) -> None:
    """Raises FormatNotPrunable for a model that can be looked at, but not pruned yet."""
    if format is not None and format not in FORMATS:
        raise FormatNotPrunable(
            f"The model is of the format {format!r}: its inspection says what it is made of, but it cannot "
            f"be pruned yet. Jobs and plans take models of the formats {', '.join(map(repr, FORMATS))}.",
            pointer="/model",
        )

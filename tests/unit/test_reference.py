"""docs/api.md says what the application does."""

from __future__ import annotations

from pathlib import Path

from service.ui import reference

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_fresh() -> None:
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == reference.current(), "run: python -m service.ui.reference"


def test_every_call_and_problem_is_in_it() -> None:
    text = reference.current()
    assert "### `POST /v1/jobs`" in text
    assert "| `idempotency_key_reused` | 422 |" in text

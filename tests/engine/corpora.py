"""Small made-up datasets, the same on every run."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had".split()
)


def write_texts(path: Path, rows: int = 60, labels: Sequence[str] | None = None, seed: int = 0) -> Path:
    """A .jsonl of short distinct documents, with labels if they are named."""
    chance = random.Random(seed)
    lines = []
    for number in range(rows):
        text = " ".join(chance.choice(WORDS) for _ in range(chance.randint(5, 40)))
        row: dict[str, str] = {"text": f"{text} {seed}-{number}"}
        if labels:
            row["label"] = labels[number % len(labels)]
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

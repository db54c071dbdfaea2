"""Damaged ONNX files by the hundred: taken in or refused, never anything else.
`tests/bench/fuzz_onnx.py` goes on for as long as one likes."""

from __future__ import annotations

import random

from tests.fuzzing import Tally, damaged, judge, seeds


def test_damaged_files() -> None:
    sound = seeds(None)
    rng = random.Random(20)
    tally = Tally()
    for _ in range(1500):
        judge(damaged(rng.choice(sound), sound, rng), tally)
    assert tally.refused > 1000
    assert tally.taken > 20

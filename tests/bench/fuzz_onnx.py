"""Admits damaged ONNX files for some minutes: `python -m tests.bench.fuzz_onnx --minutes 10 --seed 1`.

A file that makes anything but a refusal in words, or takes too long, is written to the current folder
and named.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.conftest import SHARED
from tests.fuzzing import Tally, damaged, judge, seeds


def main() -> int:
    """The command; exits 1 with the file that broke it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sound = seeds(SHARED / "models")
    rng = random.Random(options.seed)
    tally = Tally()
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        data = damaged(rng.choice(sound), sound, rng)
        try:
            judge(data, tally)
        except BaseException:
            place = Path(f"fuzz-{options.seed}-{tally.taken + tally.refused}.onnx")
            place.write_bytes(data)
            print(f"broken by {place}")
            raise
    print(
        f"seed {options.seed}: {tally.taken + tally.refused:,} files of {len(sound)} sound ones, "
        f"{tally.taken:,} taken in, {tally.refused:,} refused; the longest took {tally.longest:.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Modules can be imported in any order: each of these first, in a process that has imported none."""

from __future__ import annotations

import subprocess
import sys

FIRST = """
import os, sys, torch
bad = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
        except BaseException as error:
            print(name, error, flush=True)
            os._exit(1)
        os._exit(0)
    bad += [name] if os.waitpid(child, 0)[1] else []
sys.exit(len(bad))
"""
MODULES = (
    "compression.unit_statistics", "compression.updates.quadratic", "compression.criteria.units",
    "compression.expert_use", "compression.allocation.units", "compression.criteria.structures.obs",
    "compression.updates.structures", "compression.granularity.base", "compression.anatomy.varied",
    "compression.anatomy.ranks", "compression.updates.layers", "compression.updates.ranks",
    "compression.criteria.ranks", "compression.allocation.ranks", "compression.factoring",
    "compression.merging", "compression.graphs.rewriting", "compression.graphs.criteria.base",
    "compression.graphs.operators.shape", "compression.graphs.rules.reshape", "compression.graphs.pruning",
)  # fmt: skip


def test_any_module_can_be_the_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, *MODULES], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout

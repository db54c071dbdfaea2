"""What every operator computes; importing this package fills the table. One file a group of operators."""

from __future__ import annotations

from compression.graphs import operators
from compression.graphs.operators.table import TABLE, Circumstances, check_known, execute
from compression.registry import discover

discover(operators.__name__, operators.__path__)

__all__ = ["TABLE", "Circumstances", "check_known", "execute"]

"""How every operator ties channels together; importing this package fills the table. One file a group."""

from __future__ import annotations

from compression.graphs import rules
from compression.graphs.rules.table import RULES, Analysis
from compression.registry import discover

discover(rules.__name__, rules.__path__)

__all__ = ["RULES", "Analysis"]

"""Criteria of units of graphs; importing this package fills the registry. One file a criterion."""

from __future__ import annotations

from compression.graphs import criteria
from compression.graphs.criteria.base import CRITERIA, GroupCriterion, Scores
from compression.registry import discover

discover(criteria.__name__, criteria.__path__)

__all__ = ["CRITERIA", "GroupCriterion", "Scores"]

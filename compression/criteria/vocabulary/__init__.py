"""What is a token worth? One file a criterion."""

from __future__ import annotations

from compression.criteria.tokens import VocabularyCriterion
from compression.registry import Registry, discover

vocabulary_criteria: Registry[VocabularyCriterion] = Registry("vocabulary criterion")

discover(__name__, __path__)

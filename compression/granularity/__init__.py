"""What is removed as one: single weights, n of m consecutive inputs, whole layers. Masks with exact
counts.
"""

from __future__ import annotations

from compression.granularity.base import Granularity
from compression.registry import Registry, discover

granularities: Registry[Granularity] = Registry("granularity")

discover(__name__, __path__)

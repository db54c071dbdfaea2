"""CoSpaDi: weights become dictionaries with sparse codes, fitted to the outputs on calibration data.

The paper alternates K-SVD with orthogonal matching pursuit; here the whole dictionary is solved for at once,
codes pick several atoms a step, and none is replaced by a worse one. Each weight has a dictionary of its own.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.ranks import rank_recipe

COSPADI = recipes.register(
    rank_recipe(
        "cospadi",
        "CoSpaDi",
        "Replaces weights by dictionaries with sparse codes, so that the outputs on calibration data lose "
        'little. Smaller, hardly faster. Needs output.layout "packaged".',
        Paper(
            "CoSpaDi: Compressing LLMs via Calibration-Guided Sparse Dictionary Learning",
            "Makhov, Shopkhoev, Zhussip, Ali, Lefkimmiatis",
            "2025",
            "2509.22075",
        ),
        criterion="whitening",
        atoms_per_entry=2,
    )
)

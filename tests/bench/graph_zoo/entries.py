"""What an architecture of the zoo is, and the list of them all."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(os.environ.get("SECATEUR_ZOO") or Path(tempfile.gettempdir()) / "secateur-zoo")
"""Where `graph_zoo/setup` puts environments and exported graphs are kept."""
SOURCES = {
    "transformers": ("", ("hub", "hub_audio")),
    "timm": ("timm", ("image_models",)),
    "by hand": ("", ("convolutional", "dense", "attentive", "sequential")),
    "TensorFlow": ("tensorflow", ("tensorflow_models",)),
    "scikit-learn": ("sklearn", ("sklearn_models",)),
}
"""By source, the environment that builds its architectures ("" is the repository's own) and the files that
name them."""


@dataclass(frozen=True)
class Architecture:
    """An architecture: `build` makes what the exporter of its source takes, `inputs` are shapes with a batch
    of one, as `secateur convert` reads them. `traced`: written by torch's older exporter, since the newer one
    fails."""

    name: str
    source: str
    build: Callable[[], Any]
    inputs: tuple[str, ...] = ("image:1x3x64x64",)
    traced: bool = False


def architectures() -> dict[str, Architecture]:
    """Every architecture by its name, in the order of the table."""
    found: dict[str, Architecture] = {}
    for source, (_, files) in SOURCES.items():
        for file in files:
            module = importlib.import_module(f"tests.bench.graph_zoo.{file}")
            for name, build, *rest in module.listed():
                if name in found:
                    raise ValueError(f"two architectures are called {name}")
                found[name] = Architecture(name, source, build, *rest)
    return found

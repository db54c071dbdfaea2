"""Builds an architecture of torch and writes it as `secateur convert` does.

`python -m tests.bench.graph_zoo.export NAME OUT.onnx`
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compression.loading.convert_graph import Input
from compression.loading.convert_graph import export as exported
from compression.loading.convert_graph import write as written
from tests.bench.graph_zoo.entries import architectures


def stir(model: Any) -> None:
    """Weights and statistics that are all equal (zeros, ones, scales of 1e-6) get numbers of their own: what
    starts so would hide what is computed wrongly."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and bool((tensor == tensor.flatten()[0]).all())
            ):
                tensor.add_(torch.rand_like(tensor) * 0.3)


def trace(model: Any, inputs: Sequence[Input], place: Path) -> None:
    """Write a network by the older exporter."""
    names = [each.name for each in inputs]
    torch.onnx.export(
        model,
        tuple(each.example(2) for each in inputs),
        place,
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["output"],
        dynamic_axes={name: {0: "batch"} for name in [*names, "output"]},
    )


def main() -> None:
    one = architectures()[sys.argv[1]]
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = one.build().eval()
    stir(model)
    inputs, place = [Input.parse(text) for text in one.inputs], Path(sys.argv[2])
    if one.traced:
        trace(model, inputs, place)
    else:
        written(exported(model, inputs), place)


if __name__ == "__main__":
    main()

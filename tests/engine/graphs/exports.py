"""Networks as torch exports them. They are kept in `exported/`, since an export takes seconds; a slow
test makes them anew. `python -m tests.engine.graphs.exports NAME ...` writes those of these names (all,
if none is given).

Kept without what the exporter notes beside the network: it names files of the machine.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import onnx
import torch
from onnx import ModelProto

from tests.engine.graphs.networks import NETWORKS, network, samples

FOLDER = Path(__file__).parent / "exported"
TRACED = ("grouped-queries", "odd-norms", "recurrent", "unet", "vit", "vit-fused")
"""Networks that the older exporter writes, too, with arithmetic of shapes among the nodes."""
NAMES = (*NETWORKS, *(f"{name}.traced" for name in TRACED))


def export(name: str) -> ModelProto:
    """A network as torch.onnx.export writes it, with a batch of any size; NAME.traced by the older
    exporter."""
    plain, _, traced = name.partition(".")
    made, x = network(plain), samples(plain, 2)
    path = FOLDER / f"{name}.new"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if traced:
            torch.onnx.export(
                made, (x,), path, dynamo=False, opset_version=14, input_names=["x"], output_names=["y"],
                dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            )  # fmt: skip
        else:
            torch.onnx.export(
                made, (x,), path, dynamo=True, external_data=False, verbose=False, input_names=["x"],
                output_names=["y"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    model = onnx.load(path)
    path.unlink()
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for kept in (model, model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output):
        kept.ClearField("metadata_props")
    return model


def stored(name: str) -> ModelProto:
    """The network as it was exported."""
    return onnx.load(FOLDER / f"{name}.onnx")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or NAMES:
        onnx.save(export(name), FOLDER / f"{name}.onnx")
        print(name, flush=True)

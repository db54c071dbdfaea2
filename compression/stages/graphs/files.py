"""ONNX files as they come and as they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from compression.errors import WeightsNotFinite
from compression.graphs.costs import COUNTED
from compression.graphs.executor import trained_initializers
from compression.graphs.folding import fold_norms
from compression.graphs.graph import Graph, read_graph, write_graph


def read_network(folder: Path, file: str) -> Graph:
    """The graph of an admitted model. What admission has seen of external data (plain names, lengths) is
    relied on; links are followed, which the onnx package refuses. Raises GraphInvalid, OperatorUnknown."""
    model = onnx.load(str(folder / file), load_external_data=False)
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _take_in(tensor, folder)
    return fold_norms(read_graph(model))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _take_in(tensor: TensorProto, folder: Path) -> None:
    told = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / told["location"]).open("rb") as stream:
        stream.seek(int(told.get("offset", "0")))
        tensor.raw_data = stream.read(int(told["length"])) if "length" in told else stream.read()
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def check_finite(graph: Graph) -> None:
    """Raises WeightsNotFinite that names the first NaN of a parameter, or the first infinity of one that
    is multiplied by (others may mask with infinities)."""
    multiplied = {name for node in graph.nodes if node.operator in COUNTED for name in node.inputs}
    for name in sorted(trained_initializers(graph)):
        array = graph.initializers[name].astype(np.float32, copy=False)
        bad = ~np.isfinite(array) if name in multiplied else np.isnan(array)
        if bad.any():
            place = np.argwhere(bad)[0]
            where = ", ".join(str(index) for index in place.tolist())
            raise WeightsNotFinite(f"the tensor {name}[{where}] is {array[tuple(place)]}", pointer=name)


def written(graph: Graph) -> ModelProto:
    """A graph as it will be stored, without what exporters note beside it."""
    return write_graph(graph)


def store(graph: Graph, folder: Path, file: str, data: str | None) -> list[Path]:
    """Write a graph as one file, or (`data`) with its larger tensors in a second one; gives the paths."""
    model = written(graph)
    if data is None:
        onnx.save(model, str(folder / file))
        return [folder / file]
    onnx.save(
        model,
        str(folder / file),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data,
        size_threshold=1024,
    )
    return [path for path in (folder / file, folder / data) if path.exists()]

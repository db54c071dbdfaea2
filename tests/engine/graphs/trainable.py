"""A small network with batch normalisation, and images that it can learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from compression.graphs.batches import Batch
from compression.graphs.graph import Graph, read_graph
from tests.engine.graphs.samples import floats, model_of, whole

CLASSES = 4


def norm(name: str, width: int) -> dict[str, Any]:
    """Scale, bias and statistics of a batch normalisation."""
    return {
        f"{name}.scale": np.linspace(0.5, 1.5, width, dtype=np.float32),
        f"{name}.bias": np.linspace(-0.2, 0.3, width, dtype=np.float32),
        f"{name}.mean": np.zeros(width, np.float32),
        f"{name}.var": np.ones(width, np.float32),
    }


def small_resnet(width: int = 8, inner: int = 6, dtype: str = "float32", momentum: float = 0.9) -> Graph:
    """y = gemm(mean(h + bn(conv(relu(bn(conv h)))))) of h = relu(bn(conv((x - shift) * scale)))."""

    def conv(one: str, source: str, result: str) -> Any:
        return helper.make_node("Conv", [source, one], [result], pads=[1, 1, 1, 1])

    def bn(one: str, source: str, result: str) -> Any:
        names = [f"{one}.{part}" for part in ("scale", "bias", "mean", "var")]
        return helper.make_node("BatchNormalization", [source, *names], [result], momentum=momentum)

    nodes = [
        helper.make_node("Sub", ["x", "shift"], ["centred"]),
        helper.make_node("Mul", ["centred", "half"], ["pixels"]),
        conv("stem", "pixels", "c0"), bn("n0", "c0", "b0"), helper.make_node("Relu", ["b0"], ["h"]),
        conv("one", "h", "c1"), bn("n1", "c1", "b1"), helper.make_node("Relu", ["b1"], ["k"]),
        conv("two", "k", "c2"), bn("n2", "c2", "b2"), helper.make_node("Add", ["h", "b2"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "head", "head.bias"], ["y"]),
    ]  # fmt: skip
    weights = {
        "shift": floats(1, 3, 1, 1) / 10, "half": np.array([0.5], np.float32),
        "stem": floats(width, 3, 3, 3) / 4, "one": floats(inner, width, 3, 3) / 6,
        "two": floats(width, inner, 3, 3) / 6, "head": floats(width, CLASSES) / 2,
        "head.bias": floats(CLASSES) / 10, **norm("n0", width), **norm("n1", inner), **norm("n2", width),
    }  # fmt: skip
    stored = {name: array.astype(dtype) for name, array in weights.items()} | {"axes": whole(2, 3)}
    return read_graph(model_of(nodes, {"x": floats(2, 3, 8, 8).astype(dtype)}, ["y"], stored))


class Pictures:
    """Images of as many patterns as there are classes, with noise (`recovery.types.TrainingData`)."""

    def __init__(self, count: int = 48, *, labelled: bool = True) -> None:
        draw = torch.Generator().manual_seed(11)
        patterns = torch.randn(CLASSES, 3, 8, 8, generator=draw)
        self.labels = torch.arange(count) % CLASSES
        self.pixels = patterns[self.labels] + 0.5 * torch.randn(count, 3, 8, 8, generator=draw)
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        places = list(indices)
        batch = {"pixel_values": self.pixels[places]}
        return batch | {"labels": self.labels[places]} if self.labelled else batch


def read(given: Mapping[str, Tensor]) -> Batch:
    """A batch of `Pictures` as the network takes it."""
    return Batch({"x": given["pixel_values"]}, given.get("labels"))


class Silent:
    """Nobody listens (`recovery.types.Observer`)."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...

    def metric(self, name: str, value: float) -> None: ...


class Memory:
    """Steps that are kept in memory (`recovery.types.Store`); `stop_after` a step, saving ends in Killed."""

    class Killed(Exception):
        """The process ends here."""

    def __init__(self, stop_after: str | None = None) -> None:
        self.steps: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self.stop_after = stop_after

    def save(self, name: str, tensors: Mapping[str, Tensor] | None, data: Mapping[str, Any]) -> None:
        self.steps[name] = {key: one.clone() for key, one in (tensors or {}).items()}, dict(data)
        if name == self.stop_after:
            self.stop_after = None
            raise self.Killed

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, data = self.steps[name]
        return {key: one.clone() for key, one in tensors.items()}, dict(data)

    def has(self, name: str) -> bool:
        return name in self.steps

    def data(self, name: str) -> dict[str, Any]:
        return dict(self.steps[name][1])

    def discard(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.steps.pop(name, None)

"""Removing channels of the residual stream: one choice for all layers, then smaller tensors, one finished
step a block.

The steps: `channels` holds the channels that stay (int64 `kept`) and, where the stream is turned, the
directions (float64 `basis`); `hidden-0000`... and `hidden-ends` hold every tensor with an axis of the stream,
by its stored name. Laid over the files of the dense model, or over those of finished blocks that lost other
units, under the config of the new width, they are the smaller model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy.inspection import Site
from compression.anatomy.residual import Axis, Stream
from compression.block_pruning import StructureSettings
from compression.channel_statistics import ChannelStatistics, measure_channels
from compression.checkpoint import Hook, Store
from compression.criteria.units import Piece, Units, best, check_unit_scores
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.pruning import Batch, Listener
from compression.residual_surgery import StreamSource
from compression.seeds import site_generator

CHOICE, ENDS = "channels", "hidden-ends"


class ChannelPruner:
    """Cuts `settings.widths["hidden"]` channels out of a model that is streamed from disk.

    `source` are the tensors that are cut (the dense model's, or those of one that lost other units); scores
    and directions are those of the dense model. `rotated`: the channels are the principal directions of the
    stream.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        stream: Stream,
        source: WeightReader,
        settings: StructureSettings,
        calibration: Sequence[Batch] | None,
        store: Store,
        listener: Listener,
        hook: Hook | None = None,
        *,
        rotated: bool = False,
    ) -> None:
        self._open = open_model
        self._stream = stream
        self._source = source
        self._settings = settings
        self._calibration = calibration
        self._store = store
        self._listener = listener
        self._hook = hook
        self._rotated = rotated

    def run(self, sites: Sequence[Site]) -> list[dict[str, Any]]:
        """Choose and cut what is not finished; gives the facts of the weights, in the model's order."""
        model = self._open()
        if not self._store.has(CHOICE):
            self._store.save(CHOICE, self._choose(model), {"kept": self._settings.widths["hidden"]})
        chosen = self._store.load(CHOICE)[0]
        source = StreamSource(self._source, self._stream, chosen["kept"], chosen.get("basis"), model.device)
        for layer, name in self._steps():
            if not self._store.has(name):
                tensors = {one: source.tensor(one) for one in source.changed(layer)}
                facts = [
                    self._fact(source, site, tensors[site.name])
                    for site in sites
                    if layer is not None and site.layer == layer and site.name in tensors
                ]
                if self._hook is not None:
                    self._hook("mid_block")
                self._store.save(name, tensors, {"weights": facts})
            self._listener.progress((layer or 0) + 1, self._stream.layers)
        return [fact for _, name in self._steps() for fact in self._store.data(name)["weights"]]

    def files(self) -> list[Path]:
        """The files of all steps."""
        return [self._store.path(name) for _, name in self._steps()]

    def kept(self) -> list[int] | None:
        """The channels of the dense model that stay; None where they are directions."""
        return None if self._rotated else [int(one) for one in self._store.load(CHOICE)[0]["kept"]]

    def _steps(self) -> list[tuple[int | None, str]]:
        layers = [(layer, f"hidden-{layer:04d}") for layer in range(self._stream.layers)]
        return [*layers, (None, ENDS)]

    # -- which channels
    # ---------------------------------------------------------------------------------------------

    def _choose(self, model: StreamedModel) -> dict[str, Tensor]:
        width = self._settings.widths["hidden"]
        measured = self._measure(model)
        if self._rotated:
            assert measured is not None
            assert measured.products is not None
            energies, basis = principal_directions(measured.products)
            units = Units("hidden.0", self._stream.hidden, (), energies=energies)
            return {"kept": self._best(units, width), "basis": basis, "energies": energies}
        pieces = Pieces(model.reader, self._stream.axes)
        units = Units("hidden.0", self._stream.hidden, pieces)
        if measured is not None:
            units = Units(
                "hidden.0", self._stream.hidden, pieces,
                energies=measured.energies, magnitudes=measured.magnitudes,
            )  # fmt: skip
        return {"kept": self._best(units, width)}

    def _measure(self, model: StreamedModel) -> ChannelStatistics | None:
        needs = self._settings.scorer().needs
        if not (needs or self._rotated):
            return None
        assert self._calibration is not None
        return measure_channels(
            model,
            self._stream,
            self._calibration,
            self._listener.progress,
            self._hook,
            products=self._rotated,
        )

    def _best(self, units: Units, width: int) -> Tensor:
        generator = site_generator(self._settings.seed, units.name)
        scores = check_unit_scores(self._settings.scorer().score(units, generator).cpu(), units.name)
        return best(scores, width)

    def _fact(self, source: StreamSource, site: Site, tensor: Tensor) -> dict[str, Any]:
        """How much of a weight went, in the basis it was cut in: a turned one is as large as it was."""
        dense = self._source.tensor(site.name).to(torch.float64)
        axis = next(one for one in self._stream.axes if one.tensor == site.name)
        if self._rotated and axis.norm:
            shape = [-1 if number == axis.axis else 1 for number in range(dense.dim())]
            dense = dense * source.norm(axis.norm).reshape(shape)
        gain = source.gain if site.name in self._stream.gained else 1.0
        before = float(dense.square().sum())
        after = float((tensor.to(torch.float64) / gain).square().sum())
        return {
            "name": site.name,
            "layer": site.layer,
            "kind": "hidden",
            "units": self._stream.hidden,
            "kept": self._settings.widths["hidden"],
            "weight_error": math.sqrt(max(0.0, 1 - after / before)) if before else 0.0,
            "reconstruction_error": None,
        }


def principal_directions(products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues float64 [D] of a symmetric matrix [D, D], the largest first, and its eigenvectors float64
    [D, D] as columns; of each the entry that is furthest from zero is positive. Eigenvalues that rounding
    made negative are zero."""
    values, vectors = torch.linalg.eigh((products + products.T).to("cpu", torch.float64) / 2)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    largest = vectors.abs().argmax(0, keepdim=True)
    return values.contiguous(), (vectors * vectors.gather(0, largest).sign()).contiguous()


class Pieces(Sequence[Piece]):
    """What channels own of every stored tensor, each read when it is asked for."""

    def __init__(self, reader: WeightReader, axes: Sequence[Axis]) -> None:
        self._reader = reader
        self._axes = axes

    def __len__(self) -> int:
        return len(self._axes)

    def __getitem__(self, place: Any) -> Any:
        axis = self._axes[place]
        moved = self._reader.tensor(axis.tensor).movedim(axis.axis, 0)
        weight = moved.reshape(moved.shape[0], 1, -1).to(torch.float32)
        return Piece(weight, bias=axis.tensor.endswith(".bias"))

    def __iter__(self) -> Iterator[Piece]:
        return (self[place] for place in range(len(self)))

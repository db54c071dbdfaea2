"""What allocations may know of the dense model: scores, activations, and what pruning a layer does to the
outputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compression.anatomy.budget import remove_count
from compression.anatomy.inspection import Site
from compression.criteria.base import SiteStatistics
from compression.cutting import PruneSettings, cut_site, score
from compression.densities import Bounds, site_bounds
from compression.divergence import Judge
from compression.evaluation.types import rows
from compression.gradients import Measured, difference_step, logical
from compression.granularity.base import zeros_first
from compression.granularity.blocks import block_scores
from compression.loading.streamed import States, StreamedModel
from compression.seeds import site_generator
from compression.statistics import Collector, Positions, sample_positions
from compression.token_weights import all_token_weights

Batch = dict[str, Tensor]


class Curves:
    """Measured divergences by key, in memory and, with a folder, in a file there that later jobs read
    again."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"divergences-{key}.json"
        self._values: dict[str, float] = {}
        if self._path is not None and self._path.exists():
            try:
                known = json.loads(self._path.read_text())
                self._values = {str(name): float(value) for name, value in known.items()}
            except (ValueError, TypeError, AttributeError):
                self._values = {}

    def get(self, name: str) -> float | None:
        """A value, if it is known."""
        return self._values.get(name)

    def put(self, name: str, value: float) -> None:
        """Keep a value."""
        self._values[name] = value
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Jobs of other processes may write the same file.
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._values, sort_keys=True))
            temporary.replace(self._path)


class ModelEvidence:
    """Evidence (see `allocation.base`) measured on the streamed dense model. `scratch` is a folder of its own
    for statistics and pruned layers, emptied at the start; `curves` keeps divergences.
    """

    def __init__(
        self,
        open_model: Callable[[], StreamedModel],
        sites: Sequence[Site],
        settings: PruneSettings,
        calibration: Sequence[Batch] | None,
        gradients: Measured,
        scratch: Path,
        curves: Curves,
        progress: Callable[[int, int], None],
    ) -> None:
        self._model = open_model()
        self.sites = list(sites)
        self._settings = settings
        self._calibration = list(calibration or [])
        self._gradients = gradients
        self._scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        self._curves = curves
        self.progress = progress
        self._by_name = {site.name: site for site in sites}
        self._norms: dict[str, SiteStatistics] | None = None
        self._influence: list[float] = []
        self._judges: dict[int, Judge] = {}
        self.bounds: Mapping[str, Bounds] = {
            site.name: site_bounds(self.units(site.name), settings.minimum_density, settings.maximum_density)
            for site in sites
        }

    def units(self, site: str) -> int:
        """Weights, or blocks, of a site."""
        return self._by_name[site].size // self._settings.unit

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every site's weight [out, in], as stored."""
        for site in self.sites:
            yield site.name, logical(self._model.reader.tensor(site.name), site)

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """The criterion's scores of every site's units; zeros are below 0."""
        for site in self.sites:
            weight = logical(self._model.reader.tensor(site.name), site).to(self._model.device)
            statistics = self._full(site) if self._settings.needs else None
            found = score(self._settings, site, weight, statistics)
            if self._settings.pattern.kind == "block":
                found = found.masked_fill(weight == 0, 0.0)
                yield site.name, block_scores(found, self._settings.pattern.shape)
            else:
                yield site.name, zeros_first(found, weight)

    def activations(self, site: str) -> SiteStatistics:
        """Norms and means of the inputs of a site on the dense model."""
        return self._dense()[site]

    def influence(self) -> list[float]:
        """For each layer, 1 - the mean cosine between what enters and what leaves it."""
        self._dense()
        return list(self._influence)

    def divergence(self, sparsities: Mapping[int, float], sequences: int) -> float:
        """Mean divergence of the model with these layers pruned; known values are not measured again."""
        name = json.dumps(
            [sequences, sorted((layer, round(value, 6)) for layer, value in sparsities.items())]
        )
        known = self._curves.get(name)
        if known is None:
            self._dense()
            changes = {
                layer: self._variant(layer, round(value, 6)) for layer, value in sparsities.items() if value
            }
            known = self._judge(sequences).divergence(changes)
            self._curves.put(name, known)
        return known

    def slope(self, layer: int, direction: int, sequences: int) -> float:
        """Slope of the loss along a random direction of one layer's sites."""
        judge = self._judge(sequences)
        step = difference_step(self._model.dtype)
        up, down = (judge.loss(self._moved(layer, direction, sign * step)) for sign in (1.0, -1.0))
        return (up - down) / (2 * step)

    def _judge(self, sequences: int) -> Judge:
        count = sequences or sum(rows(batch) for batch in self._calibration)
        if count not in self._judges:
            self._judges[count] = Judge(self._model, self._calibration, count)
        return self._judges[count]

    def _moved(self, layer: int, direction: int, step: float) -> dict[int, dict[str, Tensor]]:
        moved = {}
        for site in (site for site in self.sites if site.layer == layer):
            stored = self._model.reader.tensor(site.name).to(torch.float32)
            generator = site_generator(self._settings.seed, f"direction {direction} {site.name}")
            noise = torch.randn(stored.shape, generator=generator)
            moved[site.name] = stored + step * float(stored.square().mean().sqrt()) * noise
        return {layer: moved}

    # -- the dense pass

    def _dense(self) -> dict[str, SiteStatistics]:
        """Statistics of all sites on the dense model, from one pass over the calibration data."""
        if self._norms is None:
            states = self._model.start(self._calibration)
            positions = sample_positions(states, 0)
            self._norms = {}
            for index in range(self._model.layers):
                if self._model.advance(states, index):
                    positions = sample_positions(states, 0)
                self._norms |= self._dense_layer(index, states, positions)
                self.progress(index + 1, self._model.layers)
        return self._norms

    def _dense_layer(self, index: int, states: States, positions: Positions) -> dict[str, SiteStatistics]:
        block = self._model.load_block(index)
        names = [site.name for site in self.sites if site.layer == index]
        cosines, tokens = 0.0, 0
        needs = self._settings.needs | {"means"}
        with Collector(block, names, states, positions, needs) as collector:
            for number in range(len(states)):
                kind = self._settings.token_weight
                collector.batch(number, *all_token_weights(kind, self._model, block, states, number))
                before, after = states.hidden[number], self._model.run_batch(block, states, number)
                total, count = cosine_sum(before, after, states.real(number))
                cosines, tokens = cosines + total, tokens + count
                states.hidden[number] = after
        self._influence.append(1 - cosines / max(1, tokens))
        found = {name: collector.statistics(name) for name in names}
        if "hessian" in needs:
            self._scratch.mkdir(parents=True, exist_ok=True)
            hessians = {name: value.need("hessian").cpu().clone() for name, value in found.items()}
            save_file(hessians, self._hessians(index))
        return {
            name: SiteStatistics(value.column_norms, value.tokens, value.means)
            for name, value in found.items()
        }

    def _hessians(self, layer: int) -> Path:
        return self._scratch / f"hessians-{layer:04d}.safetensors"

    def _full(self, site: Site) -> SiteStatistics:
        """All that criterion and updates ask for about one site."""
        known = self._dense()[site.name] if self._settings.needs else None
        assert known is not None
        hessian = None
        if "hessian" in self._settings.needs:
            with safe_open(self._hessians(site.layer), framework="pt", device="cpu") as stream:
                hessian = stream.get_tensor(site.name)
        return self._gradients.added(
            SiteStatistics(known.column_norms, known.tokens, known.means, hessian), site
        )

    # -- pruned layers

    def _variant(self, layer: int, sparsity: float) -> dict[str, Tensor]:
        """The changed tensors of one layer pruned to a sparsity, by stored name; kept as a file of
        `scratch`."""
        path = self._scratch / f"variant-{layer:04d}-{sparsity:.6f}.safetensors"
        if not path.exists():
            self._scratch.mkdir(parents=True, exist_ok=True)
            tensors: dict[str, Tensor] = {}
            for site in (site for site in self.sites if site.layer == layer):
                tensors |= self._cut(site, sparsity)
            temporary = path.with_suffix(".tmp")
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
            temporary.replace(path)
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}

    def _cut(self, site: Site, sparsity: float) -> dict[str, Tensor]:
        reader = self._model.reader
        stored = reader.tensor(site.name)
        bound = self.bounds[site.name]
        units = min(max(remove_count(sparsity, self.units(site.name)), bound.least), bound.most)
        statistics = self._full(site) if self._settings.needs else None
        bias = site.name.removesuffix("weight") + "bias"
        weight = logical(stored, site).to(self._model.device)
        remove = units * self._settings.unit
        cut = cut_site(self._settings, site, weight, statistics, remove, has_bias=bias in reader)
        tensors = {site.name: logical(cut.weight.to(stored.dtype), site)}
        if cut.bias is not None:
            dense = reader.tensor(bias)
            tensors[bias] = (dense.to(torch.float32) + cut.bias.cpu()).to(dense.dtype)
        return tensors


def cosine_sum(before: Tensor, after: Tensor, real: Tensor | None) -> tuple[float, int]:
    """Sum over real tokens of cos(before, after), both [b, s, hidden], and how many tokens those are."""
    cosines = torch.nn.functional.cosine_similarity(before.to(torch.float32), after.to(torch.float32), dim=-1)
    if real is not None:
        cosines = cosines[real.to(cosines.device)]
    return float(cosines.sum(dtype=torch.float64)), cosines.numel()


def curve_key(settings: PruneSettings, model: str, calibration: str) -> str:
    """What divergences depend on, as a hash: the model, the data and how layers are pruned, but not how
    much."""
    facts = {
        "model": model,
        "calibration": calibration,
        "criterion": settings.criterion,
        "pattern": [settings.pattern.kind, *settings.pattern.shape],
        "comparison": settings.comparison,
        "bounds": [settings.minimum_density, settings.maximum_density],
        "update": list(settings.update),
        "token_weight": settings.token_weight,
        "gradient": [settings.gradient, settings.gradient_sequences, settings.gradient_directions],
        "seed": settings.seed,
        "parameters": {name: value for name, value in sorted(settings.parameters.items())},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

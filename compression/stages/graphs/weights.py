"""A job on the single weights of a graph: zeros in its matrices, by the methods for single weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from compression.anatomy.graph_cut import pruned_part
from compression.anatomy.graph_sites import GraphSite, Weights
from compression.cutting import PruneSettings
from compression.errors import ArtifactVerificationFailed, TargetUnreachable
from compression.evaluation.cost import site_row
from compression.export.artifact import Artifact
from compression.export.masks import FORMAT, pack, unpack, write_masks
from compression.graphs.costs import costs
from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import to_numpy, to_torch
from compression.graphs.graph import Graph
from compression.graphs.probe import probe
from compression.graphs.removal import Kept
from compression.graphs.weights.matrices import matrix, stored_form, weights_of
from compression.graphs.weights.pruning import Pruned, allocate, disobeyed, prune
from compression.loading.images.plan import Images
from compression.pruning import MASK_SUFFIX
from compression.recipes import recipes
from compression.recipes.base import Recipe
from compression.stages.graphs import artifact as artifacts
from compression.stages.graphs.account import LISTED, graph_account
from compression.stages.graphs.check import ROWS
from compression.stages.graphs.files import check_finite, read_network
from compression.stages.graphs.network import Network, calibration_batches, fixed_inputs
from compression.stages.graphs.run import GraphJob
from compression.stages.job import Loaded
from compression.stages.prune import weight_settings

ALLOCATION, PRUNED = "allocation", "weights"
MASKS = "secateur/masks.safetensors"
ZEROS = (
    "Weights are zero, and none is gone: runtimes multiply by zeros like by any other number, and the file",
    "is as large as before. `secateur/masks.safetensors` says which weights stay.",
)


class WeightsJob(GraphJob):
    """The stages of a job that puts zeros into the matrices of a graph."""

    def inspect(self) -> None:
        """Read the graph and find its matrices. Raises GraphInvalid, OperatorUnknown, WeightsNotFinite,
        TargetUnreachable."""
        loaded = self.loaded
        graph = read_network(loaded.folder, loaded.admission.weights[0])
        check_finite(graph)
        self.anatomy = uncut(graph)
        self.dense = costs(graph, seen=self.anatomy.probe)
        found = weights_of(graph)
        kept = pruned_part(loaded.specification, replace(loaded.inspection, sites=found.sites))
        names = {site.name for site in kept.sites}
        sites = tuple(site for site in found.sites if site.name in names)
        if not sites:
            raise TargetUnreachable("no matrix of this graph may be pruned by this granularity")
        self.weights: Weights = replace(found, sites=sites)
        self._whole = {site.name: _reason(loaded, site) for site in found.sites if site.name not in names}
        self._whole |= found.whole
        loaded.observer.log(
            f"{len(sites):,} matrices with {sum(site.size for site in sites):,} weights are pruned; "
            f"{len(self._whole):,} tensors that are multiplied by stay whole."
        )

    def prune(self) -> None:
        """Choose how many weights go from each matrix and remove them; both are steps that are kept."""
        steps = self.loaded.store
        if not steps.has(PRUNED):
            self._keep_pruned(self._removed())
        self._take_up()
        self.loaded.hook("mid_block")
        self.pruned, self.exactness, self.units = self.dense, 0.0, {}
        batches = None if self.data.evaluation is None else self.data.evaluation.batches
        self.inputs = fixed_inputs(self.anatomy.graph, batches, ROWS, {}, self.loaded.specification.seed)

    def _removed(self) -> Pruned:
        """The pruned graph by the job's recipe."""
        settings = self._settings(self.loaded.specification.options)
        calibration = self.data.calibration
        batches = None
        if isinstance(calibration, Images):
            batches = calibration_batches(self.anatomy.graph, calibration.batches, "")
        steps, graph, progress = self.loaded.store, self.anatomy.graph, self.loaded.observer.progress
        if not steps.has(ALLOCATION):
            counts = allocate(graph, self.weights, settings, batches, progress)
            steps.save(ALLOCATION, None, {"counts": counts})
        known = steps.data(ALLOCATION)["counts"]
        counts = {str(name): int(count) for name, count in known.items()}
        return prune(graph, self.weights, settings, counts, batches, progress)

    def _settings(self, options: Mapping[str, Any], recipe: Recipe | None = None) -> PruneSettings:
        inspection = replace(self.loaded.inspection, sites=self.weights.sites)
        model = (recipe or self.loaded.recipe).options
        return weight_settings(
            replace(self.loaded, inspection=inspection), model.model_validate(dict(options)).model_dump()
        )

    def _keep_pruned(self, made: Pruned) -> None:
        dense = self.anatomy.graph.initializers
        changed = {
            name: to_torch(array, name)
            for name, array in made.graph.initializers.items()
            if array is not dense[name]
        }
        masks = {f"{name}{MASK_SUFFIX}": pack(mask) for name, mask in made.masks.items()}
        self.loaded.store.save(PRUNED, {**changed, **masks}, {"sites": list(made.facts)})

    def _take_up(self) -> None:
        """The pruned graph, its masks and facts from the step that has them."""
        dense = self.anatomy.graph.initializers
        stored = load_file(self.loaded.store.path(PRUNED))
        arrays = {
            name: to_numpy(stored[name], array) if name in stored else array for name, array in dense.items()
        }
        self.smaller = replace(self.anatomy.graph, initializers=arrays)
        self.masks = {
            site.name: unpack(stored[f"{site.name}{MASK_SUFFIX}"], site.shape[1])
            for site in self.weights.sites
        }
        self.facts = [dict(fact) for fact in self.loaded.store.data(PRUNED)["sites"]]

    def _baseline(self, name: str) -> dict[str, Any]:
        def judge() -> dict[str, Any]:
            # A baseline has the job's granularity and bounds, and its own habits for the rest.
            bounds = ("minimum_density", "maximum_density")
            given = {key: value for key, value in self.options.items() if key in bounds}
            settings, graph = self._settings(given, recipes[name]), self.anatomy.graph
            progress = self.loaded.observer.progress
            counts = allocate(graph, self.weights, settings, None, progress)
            made = prune(graph, self.weights, settings, counts, None, progress)
            return self._judged(Network(made.graph), reference=self._network)

        return {"quality": self._kept(f"{name}-quality", judge), "domain": None}

    def _counted(self, found: dict[str, Any]) -> dict[str, Any]:
        """The costs, with those of every matrix."""
        graphs = {"dense": self.anatomy.graph, "pruned": self.smaller, "recovered": self.final}
        total = sum(site.size for site in self.weights.sites)
        for state, part in found.items():
            rows = [
                site_row(
                    site,
                    matrix(site, to_torch(graphs[state].initializers[site.name], site.name)),
                    kept_only=state != "dense",
                )
                for site in self.weights.sites
            ]
            kept = sum(row["nonzeros"] for row in rows)
            saved = sum(
                self.dense.macs_by_node[reader] * (site.size - row["nonzeros"]) // site.size
                for site, row in zip(self.weights.sites, rows, strict=True)
                for reader in self.weights.readers[site.name]
            )
            part |= {"sites": rows, "prunable_parameters": total, "prunable_nonzeros": kept}
            part |= {"sparsity": 1 - kept / total, "macs_nonzero": part["macs"] - saved}
        return found

    def _write(self, figures: dict[str, Any]) -> Artifact:
        def beside(folder: Path) -> None:
            masks = self._stored_masks().items()
            write_masks(folder / MASKS, {name: mask.flatten(1) for name, mask in masks})

        entry = {"path": MASKS, "format": FORMAT}
        return artifacts.write_folder(self.loaded, self.final, figures, beside, ZEROS, entry)

    def _stored_masks(self) -> dict[str, Tensor]:
        """The masks in the shapes of their tensors."""
        shapes = {name: array.shape for name, array in self.smaller.initializers.items()}
        return {
            site.name: stored_form(site, self.masks[site.name], shapes[site.name])
            for site in self.weights.sites
        }

    def _masks(self) -> Mapping[str, Kept]:
        return {name: mask.numpy() for name, mask in self._stored_masks().items()}

    def _explain(self, found: dict[str, Any]) -> None:
        """Nothing got smaller, and nothing was promised."""
        found["predicted"] = None

    def check(self, artifact: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same, once the written file obeys the masks. Raises ArtifactVerificationFailed."""
        written = read_network(artifact.folder, self.loaded.admission.weights[0])
        broken = disobeyed(written, self.masks, self.weights)
        if broken:
            names = ", ".join(broken[:3])
            raise ArtifactVerificationFailed(f"weights that should be zero are not, in {names}")
        return super().check(artifact)

    def account(self, found: dict[str, Any]) -> dict[str, Any]:
        """What the report says of the graph."""
        told = graph_account(self.anatomy, {}, (found["dense"], found["pruned"]), self.exactness, None)
        sizes = {name: int(array.size) for name, array in self.anatomy.graph.initializers.items()}
        whole = [
            {"tensor": name, "weights": sizes[name], "reason": reason} for name, reason in self._whole.items()
        ]
        return told | {"sparsity": found["pruned"]["sparsity"], "whole": whole[:LISTED], "slow": None}


def _reason(loaded: Loaded, site: GraphSite) -> str:
    granularity = loaded.specification.structure.granularity
    if site.fits(granularity):
        return "structure.ignore names it"
    return f"{granularity} does not divide the channels that its outputs read, or their number"


def uncut(graph: Graph) -> Anatomy:
    """The anatomy of a graph of which no channel goes: nothing is looked for. GraphInvalid if it does not
    run."""
    return Anatomy(graph, probe(graph), (), (), {}, (), frozenset(), {}, 0)

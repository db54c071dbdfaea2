"""FWSVD: the formula, its Fisher information by back-propagation through the stock model, resuming."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.factors import factor_names
from compression.anatomy.ranks import RankBudget, saving_ranks
from compression.checkpoint import Store
from compression.criteria.base import SiteStatistics
from compression.criteria.ranks import rank_criteria
from compression.factoring import RankPruner, RankSettings
from compression.loading.admission import admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.low_rank import factors
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_channel_pruning import _batches
from tests.engine.test_channels import load
from tests.engine.test_low_rank_jobs import PACKAGE
from tests.engine.test_width_jobs import _job
from tests.tiny_families import tiny_family


def _best(weight: np.ndarray, fisher: np.ndarray, rank: int) -> np.ndarray:
    """The product of this rank that is nearest where columns count by the root of their information."""
    scale = np.sqrt(fisher.sum(0))
    left, values, right = np.linalg.svd(weight * scale, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank] / scale


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_columns_count_by_their_information(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    squares = torch.rand(shape, generator=generator) ** 4
    known = SiteStatistics(torch.ones(shape[1]), 9, gradients={"square": squares})
    found = rank_criteria["fisher-inputs"].spectrum(weight, known, "w", generator)
    down, up = factors(weight, found, 5)
    wanted = _best(weight.double().numpy(), squares.double().numpy(), 5)
    assert np.allclose((up @ down).numpy(), wanted, rtol=0, atol=1e-6)
    silent = SiteStatistics(torch.ones(shape[1]), 9, gradients={"square": torch.zeros(shape)})
    down, up = factors(weight, rank_criteria["fisher-inputs"].spectrum(weight, silent, "w", generator), 5)
    assert torch.isfinite(up @ down).all()


def test_the_information_is_that_of_the_whole_model(tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "model", "Qwen3ForCausalLM")
    admission = admit_model(folder_sources(folder))
    sites = Inspection.from_json(admission.inspection).sites
    steps = {site.name: saving_ranks(site.shape, 1) for site in sites}
    budget = RankBudget(sites, steps, sum(site.size for site in sites) // 2)

    def model() -> StreamedModel:
        return StreamedModel(folder, admission.config, admission.family)

    store = Store(tmp_path / "store", "key")
    pruner = RankPruner(model, budget, RankSettings("fisher-inputs"), _batches(), store, Recorder())
    pruner.run()
    whole = load(folder, torch.float64)
    parameters = {site.name: whole.get_parameter(site.name) for site in sites}
    fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
    sequences = [
        ids[mask.bool()][None]
        for batch in _batches()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    for tokens in sequences:
        loss = whole(tokens, labels=tokens).loss
        for name, slope in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            fisher[name] += slope.square() / len(sequences)
    for layer in range(admission.config["num_hidden_layers"]):
        tensors = store.load(f"block-{layer:04d}")[0]
        for site in (site for site in sites if site.layer == layer):
            down, up = (tensors[name].double() for name in factor_names(site.name))
            weight = parameters[site.name].detach().numpy()
            wanted = _best(weight, fisher[site.name].numpy(), pruner.ranks[site.name])
            assert np.allclose((up @ down).numpy(), wanted, rtol=0, atol=2e-4 * np.abs(weight).max())


def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Killed after some of the gradients are kept."""
    asked = _job(tmp_path, "fwsvd", {"sparsity": 0.4}, options={"allocation": "energy"}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    assert report["quality"]["pruned"]["perplexity"] > 0
    work = tmp_path / "again"
    assert run_and_kill(tmp_path, work, "after_checkpoint_rename", 3) == -signal.SIGKILL
    assert hashes(pipeline.run(request(tmp_path, work), Recorder()).artifact) == hashes(outcome.artifact)

"""Two datasets, general text and that of a domain: D-Pruner's scores, and quality on both apart."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from compression import pipeline
from compression.anatomy import inspect
from compression.checkpoint import Store
from compression.criteria import criteria
from compression.criteria.base import SiteStatistics
from compression.gradients import GradientFiles, Measured, exact, single_sequences, step_name
from compression.loading.streamed import StreamedModel, read_config
from compression.loading.weights import WeightReader
from compression.parameters import configured
from compression.report.schema import load_schema
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.tiny_models import tiny_llama

KINDS = ("mean", "square")


class Parabola:
    """A loss that is quadratic in single weights: L(w') = g (w' - w) + F (w' - w)^2 / 2, summed."""

    def __init__(self, weight: Tensor, mean: Tensor, square: Tensor) -> None:
        self.weight, self.mean, self.square = weight, mean, square

    def __call__(self, changed: Tensor) -> Tensor:
        move = changed - self.weight
        return (self.mean * move + self.square * move.square() / 2).sum()


@pytest.mark.parametrize("weighed", [0.0, 1.0, 12.5])
def test_the_score_is_the_change_of_the_regularised_loss_on_removal(weighed: float) -> None:
    """Every weight is removed, one after another, from losses that are what the method takes losses for."""
    chance = torch.Generator().manual_seed(3)
    draw = [torch.randn(5, 7, generator=chance, dtype=torch.float64) for _ in range(5)]
    weight = draw[0]
    general = Parabola(weight, draw[1] * 1e-2, draw[2].square() * 1e-2)
    domain = Parabola(weight, draw[3] * 1e-2, draw[4].square() * 1e-2)

    def without(place: tuple[int, int]) -> Tensor:
        changed = weight.clone()
        changed[place] = 0.0
        return changed

    places = [(row, column) for row in range(5) for column in range(7)]
    costs = torch.zeros(5, 7, dtype=torch.float64)
    for place in places:
        costs[place] = (general(weight) - general(without(place))).abs()
    size = weight.square().mean()

    def regularised(changed: Tensor) -> Tensor:
        return domain(changed) + weighed * (costs * (changed - weight).square()).sum() / size

    expected = torch.zeros(5, 7, dtype=torch.float64)
    for place in places:
        expected[place] = (regularised(weight) - regularised(without(place))).abs()
    statistics = SiteStatistics(
        torch.ones(7),
        1,
        gradients={"mean": general.mean.float(), "square": general.square.float()},
        domain={"mean": domain.mean.float(), "square": domain.square.float()},
    )
    criterion = configured(criteria["d-pruner"], {"d_pruner_lambda": weighed, "d_pruner_first_order": True})
    found = criterion.score(weight.float(), statistics, torch.Generator())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def _batches(seed: int) -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, 257, (3, 20), generator=chance)} for _ in range(2)]


def _dense_scores(folder: Path, names: list[str], weighed: float) -> dict[str, Tensor]:
    """The scores by autograd through the stock model in float64, regulariser included."""
    import transformers

    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    parameters = dict(stock.named_parameters())
    wanted = [parameters[name] for name in names]

    def per_sequence(seed: int) -> list[tuple[Tensor, ...]]:
        rows = torch.cat([batch["input_ids"] for batch in _batches(seed)])
        found = []
        for row in rows:
            logits = stock(input_ids=row[None]).logits[0]
            found.append(torch.autograd.grad(functional.cross_entropy(logits[:-1], row[1:]), wanted))
        return found

    general, domain = per_sequence(1), per_sequence(2)
    scores = {}
    for place, name in enumerate(names):
        weight = parameters[name].detach()
        means = [torch.stack([one[place] for one in part]).mean(0) for part in (general, domain)]
        fishers = [torch.stack([one[place] ** 2 for one in part]).mean(0) for part in (general, domain)]
        costs = (means[0] * weight - fishers[0] * weight**2 / 2).abs()
        moved = weight.clone().requires_grad_()
        penalty = weighed / (weight**2).mean() * (costs * (moved - weight) ** 2).sum()
        (slope,) = torch.autograd.grad(penalty, moved, create_graph=True)
        # The regulariser has no terms of two weights, so the sum of its slopes has its curvatures as slopes.
        (curvature,) = torch.autograd.grad(slope.sum(), moved)
        first = means[1] + slope.detach()
        second = fishers[1] + curvature
        scores[name] = (first * weight - second * weight**2 / 2).abs()
    return scores


@pytest.mark.parametrize("weighed", [0.0, 2.0])
def test_scores_are_those_of_autograd_through_the_whole_model(tmp_path: Path, weighed: float) -> None:
    folder = tiny_llama(tmp_path / "model")
    sites = list(inspect(read_config(folder), WeightReader(folder).names()).sites)
    store = Store(tmp_path / "steps", "k")

    def measured(seed: int, use: str) -> GradientFiles:
        batches = single_sequences(_batches(seed), 6)
        return exact(lambda: StreamedModel(folder), sites, batches, store, KINDS, lambda a, b: None, use)

    gradients = Measured(measured(1, ""), measured(2, "domain-"))
    assert set(store.names()) == {step_name(n, use) for n in range(2) for use in ("", "domain-")}
    criterion = configured(criteria["d-pruner"], {"d_pruner_lambda": weighed, "d_pruner_first_order": True})
    expected = _dense_scores(folder, [site.name for site in sites], weighed)
    reader = WeightReader(folder)
    for site in sites:
        statistics = gradients.added(SiteStatistics(torch.ones(site.shape[1]), 1), site)
        found = criterion.score(reader.tensor(site.name), statistics, torch.Generator())
        edge = float(expected[site.name].max())
        assert edge > 0
        torch.testing.assert_close(found.double(), expected[site.name], rtol=2e-3, atol=2e-5 * edge)


# -- whole jobs

GENERAL = {"dataset": "dst_text", "samples": 8, "sequence_length": 32}
BOTH = GENERAL | {"domain": {"dataset": "dst_domain", "samples": 6}}
QUICK = {"measure": [], "samples": 4}


def _job(folder: Path, specification: dict[str, Any], swapped: bool = False, **options: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_llama(folder / "model", **({"layers": 3} | options))
    files = ["text.jsonl", "domain.jsonl"]
    for seed, name in enumerate(files):
        write_texts(folder / name, 30, seed=seed)
    names = ("dst_domain", "dst_text") if swapped else ("dst_text", "dst_domain")
    write_job(folder, "model", dict(zip(names, files, strict=True)), specification)
    return request(folder, folder / "work")


def _prune(**more: Any) -> dict[str, Any]:
    return {
        "recipe": "d-pruner",
        "target": {"sparsity": 0.5},
        "calibration": BOTH,
        "options": {"gradient_sequences": 4},
        "evaluation": QUICK,
        **more,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, pipeline.Outcome]:
    """A job with everything that a domain has, run without interruption: its folder, observer, outcome."""
    folder = tmp_path_factory.mktemp("whole")
    gates = [{"metric": "domain_perplexity", "max_ratio": 1000.0}, {"metric": "perplexity", "max": 1e9}]
    evaluation = QUICK | {"baselines": ["magnitude"], "gates": gates}
    _job(folder, _prune(evaluation=evaluation))
    recorder = Recorder()
    return folder, recorder, pipeline.run(request(folder, folder / "whole"), recorder)


def test_d_pruner_reports_both_qualities(whole: tuple[Path, Recorder, pipeline.Outcome]) -> None:
    _, recorder, outcome = whole
    report = json.loads(outcome.report.read_text())
    jsonschema.validate(report, load_schema())
    assert report["target"]["achieved"] == 0.5
    quality = report["quality"]
    for state in ("dense", "pruned"):
        general, domain = quality[state]["perplexity"], quality["domain"][state]["perplexity"]
        assert general != domain
        assert recorder.metrics[f"{state}/perplexity"] == general
        assert recorder.metrics[f"{state}/domain_perplexity"] == domain
    assert report["summary"]["domain_quality"]["pruned"] == quality["domain"]["pruned"]["perplexity"]
    assert quality["domain"]["divergence"]["pruned"]["mean_kl"] > 0
    assert [gate["passed"] for gate in report["gates"]] == [True, True]
    (baseline,) = report["baselines"]
    assert baseline["domain"]["perplexity"] != baseline["metrics"]["perplexity"]
    data = report["data"]
    assert data["domain_calibration"]["sequences"] == 6
    assert data["domain_evaluation"]["sequences"] == 4
    shared = {"calibration": 0, "domain_calibration": 0}
    assert data["overlap"] == shared
    assert data["domain_overlap"] == {"evaluation": 0} | shared
    page = outcome.report_html.read_text()
    assert "perplexity, general text" in page
    assert "perplexity, domain" in page
    card = (outcome.artifact / "README.md").read_text()
    assert "## Quality on the domain's evaluation data" in card
    assert set(report["reproducibility"]["inputs"]["datasets"]) == {"dst_text", "dst_domain"}


def test_which_text_is_general_matters(
    tmp_path: Path, whole: tuple[Path, Recorder, pipeline.Outcome]
) -> None:
    swapped = pipeline.run(_job(tmp_path, _prune(), swapped=True), Recorder())
    weights = [hashes(outcome.artifact)["model.safetensors"] for outcome in (whole[2], swapped)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("count", "there", "missing"),
    [
        (11, {"gradients-0000", "domain-gradients-0002"}, {"domain-gradients-0001", "allocation"}),
        pytest.param(
            18, {"domain-gradients-0000", "allocation", "block-0000"}, {"block-0001"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_job_killed_amid_the_two_goes_on_to_the_same_bytes(
    tmp_path: Path,
    whole: tuple[Path, Recorder, pipeline.Outcome],
    count: int,
    there: set[str],
    missing: set[str],
) -> None:
    folder, _, outcome = whole
    work = tmp_path / "work"
    assert run_and_kill(folder, work, "before_checkpoint_rename", count) == -signal.SIGKILL
    left = {path.stem for path in (work / "checkpoints").glob("*.json")}
    assert there <= left
    assert not missing & left
    recorder = Recorder()
    again = pipeline.run(request(folder, work), recorder)
    assert hashes(again.artifact) == hashes(outcome.artifact)
    # Unfinished gradients of one dataset are taken again, those of the other and all else is not.
    begun = {step for step in left if step.startswith("domain-gradients") and "allocation" not in left}
    assert not (left - begun) & set(recorder.steps)


def test_quality_on_a_domain_with_another_recipe_and_a_recovery(tmp_path: Path) -> None:
    specification = {
        "recipe": "wanda",
        "target": {"sparsity": 0.6},
        "calibration": GENERAL,
        "recovery": {
            "method": "lora", "dataset": "dst_domain", "budget": {"steps": 2}, "options": {"batch_size": 2}
        },
        "evaluation": QUICK | {"domain": {"dataset": "dst_domain", "samples": 2}},
    }  # fmt: skip
    outcome = pipeline.run(_job(tmp_path, specification), Recorder())
    report = json.loads(outcome.report.read_text())
    jsonschema.validate(report, load_schema())
    domain = report["quality"]["domain"]
    assert domain["recovered"]["perplexity"] > 0
    assert domain["counts"]["sequences"] == 2
    assert report["data"]["domain_overlap"] == {"evaluation": 0, "calibration": 0, "recovery": 0}
    assert report["data"]["domain_calibration"] is None


def test_texts_that_both_evaluations_share_are_told(tmp_path: Path) -> None:
    specification = {
        "recipe": "magnitude",
        "target": {"sparsity": 0.5},
        "evaluation": QUICK | {"dataset": "dst_text", "domain": {"dataset": "dst_domain"}},
    }
    job = _job(tmp_path, specification)
    (tmp_path / "domain.jsonl").write_bytes((tmp_path / "text.jsonl").read_bytes())
    recorder = Recorder()
    report = json.loads(pipeline.run(job, recorder).report.read_text())
    assert report["data"]["domain_overlap"]["evaluation"] > 0
    assert any("not quite apart" in message for message in recorder.messages)
    assert report["quality"]["domain"]["pruned"] == report["quality"]["pruned"]


def test_the_report_has_the_pq_index_of_every_weight(
    whole: tuple[Path, Recorder, pipeline.Outcome],
) -> None:
    folder, _, outcome = whole
    report = _check_compressibility(folder, outcome)
    # What pruning leaves is more alike than what was there.
    assert all(row["pq_index"]["final"] < row["pq_index"]["dense"] for row in report["layers"])


def test_layers_that_stay_are_compared_with_what_they_were(tmp_path: Path) -> None:
    target = {"layers": 1}
    specification = {"recipe": "layer-drop", "target": target, "calibration": GENERAL, "evaluation": QUICK}
    outcome = pipeline.run(_job(tmp_path, specification, layers=4), Recorder())
    report = _check_compressibility(tmp_path, outcome)
    assert all(row["pq_index"]["final"] == row["pq_index"]["dense"] for row in report["layers"])


def _check_compressibility(folder: Path, outcome: pipeline.Outcome) -> Any:
    """Every figure of the report against the values in the files."""
    report = json.loads(outcome.report.read_text())
    dense, final = (
        load_file(folder / "model/model.safetensors"),
        load_file(outcome.artifact / "model.safetensors"),
    )
    kept = report["dropped"]["kept"] if report["dropped"] else list(range(3))

    def index(values: Tensor) -> float:
        sizes = values.double().abs()
        return 1 - float(sizes.mean() / sizes.square().mean().sqrt())

    for site in report["sites"]:
        origin = site["name"].replace(f".{site['layer']}.", f".{kept[site['layer']]}.")
        before, after = dense[origin], final[site["name"]]
        found = site["compressibility"]
        assert found["dense"]["index"] == pytest.approx(index(before), abs=1e-9)
        assert found["dense"]["count"] == before.numel()
        assert found["final"]["index"] == pytest.approx(index(after[after != 0]), abs=1e-9)
        assert found["final"]["count"] == int(after.count_nonzero())
    for row in report["layers"]:
        part = [s["compressibility"] for s in report["sites"] if s["layer"] == row["layer"]]
        for state in ("dense", "final"):
            mean = sum(one[state]["index"] for one in part) / len(part)
            assert row["pq_index"][state] == pytest.approx(mean)
    assert "PQ index" in outcome.report_html.read_text()
    return report

"""Jobs that aim at a latency, by a table of times that is made up: what is chosen, said, kept and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compression import pipeline
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import LatencyTable, Timing
from compression.anatomy.plan import plan
from compression.errors import TargetUnreachable
from compression.evaluation import probe, timing
from compression.loading.admission import admit_model, folder_sources
from compression.report import schema
from compression.report.html import render
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, request, write_job
from tests.timings import made_table
from tests.tiny_models import tiny_llama

CALIBRATION = {"dataset": "dst_text", "samples": 8, "sequence_length": 24}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds: what is measured is not looked at."""
    from compression.stages import finish

    usual = finish.measure
    monkeypatch.setattr(finish, "measure", lambda *args, **more: usual(*args, **more, repeats=5, seconds=0.1))


def _table(folder: Path, **changes: Any) -> LatencyTable:
    inspection = Inspection.from_json(admit_model(folder_sources(folder / "model")).inspection)
    here = {"device": probe.device_name("cpu"), "runtime": timing.runtime()}
    return made_table(inspection, **{**here, **changes})


def _job(folder: Path, target: Any, *, kind: str = "latency", table: bool = True, **more: Any) -> Any:
    """The request of a job with a cache that has a table, unless it shall measure one."""
    tiny_llama(folder / "model", layers=4, hidden=48, heads=8, key_value_heads=4, ffn=96)
    write_texts(folder / "text.jsonl", 60)
    specification = {
        "recipe": "magnitude-width",
        "target": {kind: target},
        "calibration": CALIBRATION,
        "evaluation": {"measure": ["latency"], "samples": 4},
        **more,
    }
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    (folder / "cache").mkdir(exist_ok=True)
    if table:
        made = _table(folder)
        (folder / "cache" / f"latency-{made.key}.json").write_text(made.model_dump_json())
    return replace(request(folder, folder / "work"), cache=folder / "cache")


def _report(outcome: pipeline.Outcome) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(outcome.report.read_text())
    schema.validate(report)
    return report


def _promised(asked: Any, folder: Path) -> dict[str, Any]:
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    table = _table(folder)
    return plan(asked.specification, inspection, [Timing(table, table)])


def test_widths_come_from_the_table_as_a_plan_says_and_correct_it(tmp_path: Path) -> None:
    asked = _job(tmp_path, 0.6)
    promised = _promised(asked, tmp_path)
    recorder = Recorder()
    report = _report(pipeline.run(asked, recorder))
    kept = {one["kind"]: one["kept"] for one in report["widths"]["structures"]}
    assert kept == {kind: one["kept"] for kind, one in promised["cut"]["widths"].items()}
    predicted = report["latency"]["predicted"]
    (said,) = promised["latency"]["predictions"]
    assert {name: predicted[name] for name in ("dense", "pruned", "ratio")} == pytest.approx(
        {name: said[name] for name in ("dense", "pruned", "ratio")}
    )
    forward = report["latency"]["cases"][0]
    assert report["target"] == {
        "kind": "latency",
        "requested": 0.6,
        "achieved": forward["pruned"]["median"],
        "ratio": forward["ratio"],
        "aimed": pytest.approx(0.6 * 0.044),
    }
    assert "latency" in recorder.steps
    page = render(report)
    assert "Aimed at 26.4 ms" in page
    assert any("Aimed at 26.4 ms" in note for note in report["notes"])
    # What was measured moves the table halfway; the shares of widths stay.
    before = _table(tmp_path)
    (path,) = (tmp_path / "cache").glob("latency-*.json")
    after = LatencyTable.model_validate_json(path.read_bytes())
    assert after.key == before.key
    assert after.seconds(4) == pytest.approx((forward["dense"]["median"] * 0.044) ** 0.5)
    assert after.level("neuron", 48) / after.layer == pytest.approx(before.level("neuron", 48) / before.layer)


def test_layers_go_by_the_table(tmp_path: Path) -> None:
    asked = _job(tmp_path, 0.8, recipe="layer-drop")
    report = _report(pipeline.run(asked, Recorder()))
    assert len(report["dropped"]["kept"]) == 3
    assert report["latency"]["predicted"]["pruned"] == pytest.approx(0.034)


def test_a_knapsack_of_times_is_filled(tmp_path: Path) -> None:
    asked = _job(
        tmp_path, "30ms", options={"allocation": "knapsack", "knapsack_sequences": 4},
        output={"layout": "packaged"},
    )  # fmt: skip
    report = _report(pipeline.run(asked, Recorder()))
    seconds = report["latency"]["predicted"]["pruned"]
    # A step of neurons (8 of 96) is half a millisecond.
    assert 0.0294 <= seconds <= 0.030
    counts = {one["kind"]: one["layers"] for one in report["widths"]["structures"]}
    assert seconds == pytest.approx(_table(tmp_path).varied_seconds(4, counts))


def test_what_the_table_cannot_reach_fails_with_what_it_can(tmp_path: Path) -> None:
    asked = _job(tmp_path, 0.05)
    with pytest.raises(
        TargetUnreachable, match=r"dense model takes 44 ms, the smallest result .* ratio of 0\.2955"
    ):
        pipeline.run(asked, Recorder())
    dropping = _job(tmp_path, 0.3, recipe="layer-drop")
    with pytest.raises(TargetUnreachable, match="at least 1 and at most 2 can go, of 4"):
        pipeline.run(dropping, Recorder())


@pytest.mark.parametrize("recipe", ["magnitude-width", "wanda"])
def test_a_table_is_measured_where_it_is_missing_and_of_use(recipe: str, tmp_path: Path) -> None:
    asked = _job(tmp_path, 0.5, kind="sparsity", table=False, recipe=recipe)
    recorder = Recorder()
    report = _report(pipeline.run(asked, recorder))
    left = list((tmp_path / "cache").glob("latency-*.json"))
    assert "latency" not in recorder.steps
    if recipe == "wanda":
        assert left == []
        assert report["latency"]["predicted"] is None
        return
    table = LatencyTable.model_validate_json(left[0].read_bytes())
    assert (table.device, table.layers) == (report["latency"]["device"], 4)
    assert report["latency"]["predicted"]["aimed"] is None


def test_a_job_taken_up_again_keeps_its_table(tmp_path: Path) -> None:
    asked = _job(tmp_path, 0.6)

    class Stop(Exception):
        pass

    def stop(name: str) -> None:
        if name == "mid_block":
            raise Stop

    with pytest.raises(Stop):
        pipeline.run(asked, Recorder(), hook=stop)
    (path,) = (tmp_path / "cache").glob("latency-*.json")
    path.write_text(_table(tmp_path, layer=0.02, levels={}).model_dump_json())
    report = _report(pipeline.run(asked, Recorder()))
    assert report["reproducibility"]["resumed"]
    assert report["latency"]["predicted"]["dense"] == pytest.approx(0.044)

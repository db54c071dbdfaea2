"""The bench of many architectures: what counts as a success, time limits, going on where it was."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import graph_breadth
from tests.bench.graph_zoo.entries import SOURCES, architectures
from tests.bench.graph_zoo.prune import fault, judged
from tests.engine.graphs.exports import FOLDER

FINE = {
    "dense": 1e-7,
    "exact": 1e-7,
    "runtime": 1e-6,
    "ratio": 0.5,
    "kept_by": ["Softmax compares (8 channels)"],
}


def test_sixty_architectures_at_least_of_all_sources() -> None:
    listed = architectures()
    assert len(listed) >= 60
    assert {one.source for one in listed.values()} == set(SOURCES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({}, ""), ({"ratio": 0.52}, ""), ({"ratio": 0.61}, "0.61 of the multiply-accumulates stay: Softmax"),
     ({"exact": 2e-5}, "masked one by 2e-05"), ({"runtime": float("nan")}, "in ONNX Runtime differs"),
     ({"dense": 1e-3, "ratio": 0.7}, "dense graph")],
)  # fmt: skip
def test_what_is_a_fault(changed: dict[str, Any], said: str) -> None:
    found = fault({**FINE, **changed})
    assert said in found
    assert bool(found) == bool(said)


def test_a_graph_is_pruned_and_judged(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "residual.onnx", tmp_path))
    found = judged(path)
    assert found["fault"] == ""
    assert found["ratio"] <= 0.5
    assert [one.name for one in tmp_path.iterdir()] == ["residual.onnx"]


def test_a_graph_that_keeps_too_much_says_what_keeps_it(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "shuffle.onnx", tmp_path))
    found = judged(path)
    assert (found["least"] is None) == (found["ratio"] <= 0.5)


def test_a_process_that_hangs_or_fails_is_a_failure() -> None:
    with pytest.raises(graph_breadth.Failed, match="not done after 1 s of processor time"):
        graph_breadth.child([sys.executable, "-c", "while True: pass"], 1, 1)
    with pytest.raises(graph_breadth.Failed, match="ValueError: odd"):
        graph_breadth.child([sys.executable, "-c", "raise ValueError('odd')"], 30, 1)
    assert graph_breadth.child([sys.executable, "-c", "print('one'); print('two')"], 30, 1) == "two"


def test_what_is_still_to_be_tried() -> None:
    listed = architectures()
    done = {name: {"fault": "", "exported": True} for name in listed}
    del done["VGG"]
    done["AlexNet"] = {"fault": "odd", "exported": True}

    def names(**given: Any) -> list[str]:
        asked = {"only": None, "source": None, "again": False, "faulty": False} | given
        return graph_breadth.wanted(listed, done, argparse.Namespace(**asked))

    assert names() == ["VGG"]
    assert names(faulty=True) == ["VGG", "AlexNet"]
    assert names(again=True, only=["GRU"]) == ["GRU"]
    assert names(source="timm") == []
    with pytest.raises(SystemExit, match="no architecture nothing"):
        names(only=["nothing"])


def test_results_are_counted_by_source() -> None:
    listed = architectures()
    results = {
        "VGG": {"fault": "", "exported": True}, "GRU": {"fault": "odd", "exported": True},
        "ViT": {"fault": "no export", "exported": False},
    }  # fmt: skip
    rows = graph_breadth.summary(results, listed)
    assert rows == [["transformers", 1, 0, 0], ["by hand", 2, 2, 1], ["all", 3, 2, 1]]

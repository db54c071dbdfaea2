"""The report: valid by its schema, honest in plain words, one safe page that needs nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from compression.report import ReportInputs, ReportInvalid, build, load_schema, validate
from compression.report.figures import achieved
from compression.report.formats import bytes_text, count_text, percent, seconds_text
from compression.report.gates import judge
from compression.report.html import render
from compression.report.notes import packed_bytes
from tests.engine import report_samples as samples

Sample = Callable[[], ReportInputs]
SAMPLES = [
    samples.language_model,
    samples.dropped_layers,
    samples.classifier,
    samples.unjudged,
    samples.of_a_domain,
]
every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)


@every
def test_a_report_is_valid_and_plain_json(sample: Sample) -> None:
    report = build(sample())
    validate(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_schema_is_a_schema_and_refuses_what_is_not_a_report() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())
    report = build(samples.language_model())
    with pytest.raises(ReportInvalid, match="/summary"):
        validate(report | {"summary": {}})
    with pytest.raises(ReportInvalid, match="surprise"):
        validate(report | {"surprise": 1})


@every
def test_numbers_that_are_not_finite_become_null(sample: Sample) -> None:
    inputs = sample()
    report = build(replace(inputs, seconds={"load": float("inf")}))
    assert report["reproducibility"]["seconds"] == {"load": None}


class Page(HTMLParser):
    """Collects the tags of a page and checks that they nest."""

    VOID = frozenset({"meta", "rect", "line", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@every
def test_the_page_is_self_contained_and_well_formed(sample: Sample) -> None:
    html = render(build(sample()))
    page = Page()
    page.feed(html)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "a"}
    for _, attributes in page.tags:
        assert not {"src", "href", "style", "srcset"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


@every
def test_every_plot_tells_its_title_and_stays_in_its_box(sample: Sample) -> None:
    html = render(build(sample()))
    plots = re.findall(r"<svg.*?</svg>", html)
    assert plots
    for plot in plots:
        assert re.search(r'aria-label="[^"]+"><title>', plot)
        box = re.search(r'viewBox="0 0 (\d+) (\d+)"', plot)
        assert box is not None
        for x, y, width, height in re.findall(
            r'<rect class="\w+" x="([\d.-]+)" y="([\d.-]+)" width="([\d.-]+)" height="([\d.-]+)"', plot
        ):
            assert 0 <= float(x) <= float(x) + float(width) <= int(box[1]) + 0.1
            assert 0 <= float(y) <= float(y) + float(height) <= int(box[2]) + 0.1


def test_what_strangers_wrote_is_text_on_the_page() -> None:
    html = render(build(samples.classifier()))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;/pre&gt;&lt;script&gt;alert(2)" in html


def test_zeros_are_not_sold_as_savings() -> None:
    report = build(samples.language_model())
    words = " ".join(report["notes"])
    assert "did not get smaller" in words
    assert "no speed-up is to be expected" in words
    assert {entry["faster"] for entry in report["runtimes"]} == {"no"}
    assert packed_bytes(report["cost"]["pruned"]) < 0.7 * report["cost"]["pruned"]["bytes"]


def test_a_smaller_dtype_is_not_sold_as_pruning() -> None:
    words = " ".join(build(samples.classifier())["notes"])
    assert "because weights are now bfloat16" in words
    assert "Pruning itself did not make them smaller" in words
    assert "shares texts" in words


def test_fewer_layers_are_smaller_and_faster() -> None:
    report = build(samples.dropped_layers())
    words = " ".join(report["notes"])
    assert "2 of 6 layers are gone" in words
    assert "faster than the dense one" in words
    assert "heavy damage" in words
    assert report["target"] == {"kind": "layers", "requested": 2, "achieved": 2, "ratio": None}


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.7, "faster than"), (0.93, "within the spread"), (1.08, "within the spread"), (1.5, "slower than")],
)
def test_a_difference_within_the_spread_is_no_difference(ratio: float, words: str) -> None:
    measured = {"latency": samples.latency(ratio), "memory": None}
    notes = build(replace(samples.language_model(), measured=measured))["notes"]
    assert any(words in note for note in notes)


def test_a_failing_gate_shows_in_the_summary_and_on_the_page() -> None:
    assert build(samples.language_model())["summary"]["gates_passed"] is True
    assert build(samples.classifier())["summary"]["gates_passed"] is None
    report = build(samples.dropped_layers())
    assert report["summary"]["gates_passed"] is False
    assert "A gate failed" in render(report)


def test_recovered_figures_are_the_final_ones() -> None:
    report = build(samples.language_model())
    assert report["quality"]["final"] == "recovered"
    assert report["summary"]["quality"] == {
        "metric": "perplexity",
        "dense": 57.7,
        "pruned": 93.2,
        "recovered": 66.4,
    }
    assert report["gates"][0]["value"] == pytest.approx(66.4 / 57.7)


def test_layers_sum_up_their_weights() -> None:
    report = build(samples.language_model())
    assert [row["layer"] for row in report["layers"]] == list(range(6))
    first = report["layers"][0]
    assert first["sparsity"] == pytest.approx(0.5)
    assert first["largest_reconstruction_error"] == pytest.approx(0.03)
    assert first["reconstruction_error"] == pytest.approx((6 * 0.02 + 0.03) / 7)


def test_classes_and_flips_are_counted() -> None:
    classes = build(samples.classifier())["damage"]["classes"]
    assert (classes["flipped"], classes["right_to_wrong"], classes["wrong_to_right"]) == (2, 1, 1)
    assert classes["classes"][0]["change"] == pytest.approx(-1 / 3)
    assert classes["flips"][0] == {"position": 2, "truth": 0, "dense": 0, "final": 1}


@pytest.mark.parametrize(
    ("gate", "value", "passed"),
    [
        ({"metric": "perplexity", "max": 70}, 66.0, True),
        ({"metric": "perplexity", "max": 60}, 66.0, False),
        ({"metric": "perplexity", "max_ratio": 1.1}, 1.1, True),
        ({"metric": "perplexity", "min_ratio": 1.2}, 1.1, False),
        ({"metric": "accuracy", "min": 0.9}, None, False),
        ({"metric": "loss", "max": 9}, None, False),
        ({"metric": "mean_kl", "max_ratio": 2}, None, False),
    ],
)
def test_gates_are_bounds_on_numbers(gate: dict[str, Any], value: float | None, passed: bool) -> None:
    figures = {"perplexity": (60.0, 66.0), "loss": (4.0, None), "mean_kl": (None, 0.1)}
    (verdict,) = judge([gate], figures)
    assert verdict["passed"] is passed
    assert verdict["value"] == (None if value is None else pytest.approx(value))
    assert (verdict["reason"] is None) == (value is not None)


def test_targets_are_compared_in_their_own_unit() -> None:
    dense, pruned = samples.cost(6, 0.0), samples.cost(4, 0.25)
    assert achieved({"layers": 2}, dense, pruned)["achieved"] == 2
    assert achieved({"sparsity": 0.5}, dense, pruned)["achieved"] == pytest.approx(0.5, abs=1e-3)
    found = achieved({"bytes": "16MB"}, dense, pruned)
    assert found["achieved"] == pruned["bytes"]
    assert found["ratio"] == pytest.approx(pruned["bytes"] / dense["bytes"])
    assert achieved({"latency": "40ms"}, dense, pruned)["achieved"] is None


def test_a_latency_is_reached_in_milliseconds() -> None:
    target = {"kind": "latency", "requested": 0.6, "achieved": 0.01032, "ratio": 0.573}
    page = render({**build(samples.classifier()), "target": target})
    assert "reached 10.3 ms (57.3% of dense)" in page


def test_two_to_four_says_what_hardware_it_is_for() -> None:
    names = {entry["name"]: entry for entry in build(samples.classifier())["runtimes"]}
    assert names["torch semi-structured (CUDA)"]["faster"] == "depends"
    inputs = samples.classifier()
    other = dict(inputs.specification) | {"structure": {"granularity": "1:4"}}
    words = build(replace(inputs, specification=other))
    assert words["runtimes"][-1]["loads"] == "no"
    assert any("No common hardware makes use of the pattern 1:4" in note for note in words["notes"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count_text(5_475_584), "5.48 M"),
        (count_text(12), "12"),
        (count_text(None), "–"),
        (bytes_text(21_908_384), "21.9 MB"),
        (bytes_text(512), "512 B"),
        (seconds_text(0.0421), "42.1 ms"),
        (seconds_text(7.5), "7.5 s"),
        (seconds_text(600), "10 min"),
        (percent(0.5), "50%"),
        (percent(0.3333), "33.3%"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, compression.report, compression.report.html;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quality_on_a_domain_is_told_apart() -> None:
    report = build(samples.of_a_domain())
    assert report["quality"]["domain"]["recovered"] == {"loss": 4.05, "perplexity": 45.75}
    assert report["summary"]["quality"]["recovered"] == 66.4
    assert report["summary"]["domain_quality"] == {
        "metric": "perplexity", "dense": 41.5, "pruned": 71.25, "recovered": 45.75
    }  # fmt: skip
    (gate,) = report["gates"]
    assert (gate["metric"], gate["passed"], gate["value"]) == ("domain_perplexity", True, 45.75 / 41.5)
    told = " ".join(report["notes"])
    assert "On the data of the domain, which is judged apart, perplexity went from 41.5 to 45.75." in told
    assert "The domain's evaluation data is small (640 tokens)" in told
    assert "The domain's evaluation shares texts with other data of this job (2 with calibration)" in told
    assert report["reproducibility"]["seeds"]["domain_calibration"] == 3
    page = render(report)
    for words in ("Perplexity, domain", "perplexity, domain", "On the data of the domain.", "163.5"):
        assert words in page, words
    alone = build(samples.language_model())
    assert (alone["quality"]["domain"], alone["summary"]["domain_quality"]) == (None, None)
    assert "domain" not in render(alone)

"""What a specification may say, and how each mistake is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.errors import Fault, SpecificationInvalid
from compression.faults import MAXIMUM_FAULTS, pointer
from compression.specification import JobSpecification, n_m, parse, quantity

LEAST = {"model": "mdl_1", "recipe": "wanda", "target": {"sparsity": 0.5}}


def faults(**changes: Any) -> list[Fault]:
    with pytest.raises(SpecificationInvalid) as caught:
        parse({**LEAST, **changes})
    return caught.value.errors


def only(**changes: Any) -> Fault:
    (fault,) = faults(**changes)
    return fault


def test_the_least_that_must_be_said() -> None:
    spec = parse(LEAST)
    assert spec.target.kind == "sparsity"
    assert spec.target.value == 0.5
    assert spec.recovery.method == "none"
    assert spec.evaluation.measure == ["latency", "memory"]
    assert (spec.queue, spec.priority, spec.seed, spec.limits.seconds) == ("cpu", 0, 0, 7200)


def test_everything_that_can_be_said_survives_json() -> None:
    spec = parse(
        {
            **LEAST,
            "structure": {"granularity": "2:4", "ignore": ["*.down_proj", r"re:layers\.[01]\."]},
            "options": {"comparison": "row"},
            "calibration": {
                "dataset": "dst_1",
                "samples": 16,
                "sequence_length": 64,
                "seed": 3,
                "batch_size": 2,
            },
            "recovery": {
                "method": "lora",
                "dataset": "dst_2",
                "budget": {"steps": 5},
                "options": {"rank": 4},
            },
            "evaluation": {
                "dataset": "dst_3",
                "samples": 9,
                "metrics": ["perplexity"],
                "gates": [{"metric": "perplexity", "max_ratio": 1.1}, {"metric": "bytes", "max": 5}],
                "baselines": ["magnitude", "random"],
            },
            "output": {"formats": ["safetensors"], "dtype": "bfloat16"},
            "limits": {"seconds": 60, "memory_bytes": 1 << 30},
            "queue": "gpu",
            "priority": 9,
            "metadata": {"team": "search"},
            "seed": 7,
        }
    )
    data = spec.to_json()
    assert parse(data) == spec
    assert JobSpecification.model_validate(data) == spec
    assert data["target"] == {"sparsity": 0.5}
    assert data["evaluation"]["gates"][0] == {"metric": "perplexity", "max_ratio": 1.1}
    assert spec.datasets() == ["dst_1", "dst_2", "dst_3"]


def test_datasets_are_named_once_and_only_if_read() -> None:
    spec = parse(
        {
            **LEAST,
            "calibration": {"dataset": "a"},
            "recovery": {"dataset": "b"},
            "evaluation": {"dataset": "a"},
        }
    )
    assert spec.datasets() == ["a"]


def test_recovery_none_as_a_word() -> None:
    assert parse({**LEAST, "recovery": "none"}) == parse({**LEAST, "recovery": {"method": "none"}})


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"recpie": 1}, "/recpie", "'recipe'"),
        ({"calibraton": {}}, "/calibraton", "'calibration'"),
        ({"structure": {"granulraity": "2:4"}}, "/structure/granulraity", "'granularity'"),
        ({"calibration": {"dataset": "d", "sample": 3}}, "/calibration/sample", "'samples'"),
        ({"recovery": {"budget": {"step": 3}}}, "/recovery/budget/step", "'steps'"),
        (
            {"evaluation": {"gates": [{"metric": "m", "max_rato": 1}]}},
            "/evaluation/gates/0/max_rato",
            "'max_ratio'",
        ),
        ({"output": {"format": []}}, "/output/format", "'formats'"),
        ({"limits": {"second": 1}}, "/limits/second", "'seconds'"),
    ],
)
def test_unknown_keys_name_the_nearest(changes: dict[str, Any], where: str, hint: str) -> None:
    fault = next(item for item in faults(**changes) if item.pointer == where)
    assert fault.code == "unknown_key"
    assert f"did you mean {hint}" in fault.message


def test_unknown_target_names_the_nearest() -> None:
    fault = next(item for item in faults(target={"sparsty": 0.5}) if item.pointer == "/target/sparsty")
    assert "did you mean 'sparsity'" in fault.message


@pytest.mark.parametrize(
    ("target", "where", "words"),
    [
        ({}, "/target", "none is given"),
        ({"sparsity": 0.5, "layers": 1}, "/target", "sparsity and layers are given"),
        ({"sparsity": 0}, "/target/sparsity", "greater than 0"),
        ({"sparsity": 1}, "/target/sparsity", "less than 1"),
        ({"sparsity": -0.5}, "/target/sparsity", "greater than 0"),
        ({"sparsity": "0.5"}, "/target/sparsity", "number"),
        ({"sparsity": True}, "/target/sparsity", "number"),
        ({"sparsity": float("nan")}, "/target/sparsity", "finite"),
        ({"sparsity": float("inf")}, "/target/sparsity", "finite"),
        ({"layers": 0}, "/target/layers", "greater than or equal to 1"),
        ({"layers": 1.5}, "/target/layers", "integer"),
        ({"parameters": "300 lightyears"}, "/target/parameters", "units"),
        ({"parameters": 1.5}, "/target/parameters", "whole number"),
        ({"parameters": 0}, "/target/parameters", "ratio between 0 and 1"),
        ({"parameters": -3}, "/target/parameters", "ratio between 0 and 1"),
        ({"parameters": 1.0}, "/target/parameters", "leave the model as it is"),
        ({"parameters": True}, "/target/parameters", "no amount"),
        ({"parameters": ["x"]}, "/target/parameters", "number or a string"),
        ({"bytes": "12ms"}, "/target/bytes", "units"),
        ({"bytes": "0GB"}, "/target/bytes", "above zero"),
        ({"bytes": 10**400}, "/target/bytes", "beyond all models"),
        ({"macs": "1e400"}, "/target/macs", "no amount"),
        ({"latency": 40}, "/target/latency", "no unit"),
        ({"latency": "40GB"}, "/target/latency", "units"),
    ],
)
def test_bad_targets(target: dict[str, Any], where: str, words: str) -> None:
    fault = only(target=target)
    assert fault.pointer == where
    assert words in fault.message


@pytest.mark.parametrize(
    ("kind", "value", "meaning"),
    [
        ("parameters", 0.5, ("ratio", 0.5)),
        ("parameters", 300_000_000, ("absolute", 3e8)),
        ("parameters", 3e8, ("absolute", 3e8)),
        ("parameters", "300M", ("absolute", 3e8)),
        ("parameters", "1.5 b", ("absolute", 1.5e9)),
        ("macs", "2G", ("absolute", 2e9)),
        ("bytes", "1.2GB", ("absolute", 1.2e9)),
        ("bytes", "1 MiB", ("absolute", 1048576.0)),
        ("bytes", "700 kB", ("absolute", 7e5)),
        ("bytes", "123B", ("absolute", 123.0)),
        ("latency", "40ms", ("absolute", 0.04)),
        ("latency", 0.7, ("ratio", 0.7)),
    ],
)
def test_amounts(kind: str, value: Any, meaning: tuple[str, float]) -> None:
    found = quantity(kind, value)
    assert found[0] == meaning[0]
    assert found[1] == pytest.approx(meaning[1])
    assert parse({**LEAST, "target": {kind: value}}).target.value == value


@pytest.mark.parametrize(
    ("granularity", "words"),
    [
        ("unstructred", "did you mean 'unstructured'"),
        ("4:2", "1 <= n < m <= 32"),
        ("2:2", "1 <= n < m <= 32"),
        ("0:4", "1 <= n < m <= 32"),
        ("2:64", "1 <= n < m <= 32"),
        ("n:m", "with numbers"),
        ("2:4:8", "no granularity"),
        ("٢:٤", "no granularity"),
    ],
)
def test_bad_granularities(granularity: str, words: str) -> None:
    fault = only(structure={"granularity": granularity})
    assert fault.pointer == "/structure/granularity"
    assert words in fault.message


def test_n_m() -> None:
    assert n_m("2:4") == (2, 4)
    assert n_m("unstructured") is None
    assert n_m(None) is None
    assert parse({**LEAST, "structure": {"granularity": "02:04"}}).structure.granularity == "2:4"


@pytest.mark.parametrize("pattern", ["re:(", "re:", "re:(?=a)b", r"re:(a)\1", "re:" + "(a{900}){900}"])
def test_bad_patterns(pattern: str) -> None:
    fault = only(structure={"ignore": [pattern]})
    assert fault.pointer == "/structure/ignore"
    assert "regular expression" in fault.message


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"recovery": "lora"}, "/recovery", '{"method": "lora"}'),
        ({"recovery": "lorra"}, "/recovery", "did you mean 'lora'"),
        ({"recovery": {"method": "distilation"}}, "/recovery/method", "did you mean 'distillation'"),
        ({"recovery": 3}, "/recovery", "JSON object"),
        ({"evaluation": {"gates": [{"metric": "m"}]}}, "/evaluation/gates/0", "none is given"),
        (
            {"evaluation": {"gates": [{"metric": "m", "max": 1, "min": 0}]}},
            "/evaluation/gates/0",
            "max and min",
        ),
        ({"evaluation": {"baselines": ["magnitud"]}}, "/evaluation/baselines/0", "did you mean 'magnitude'"),
        ({"evaluation": {"metrics": "perplexity"}}, "/evaluation/metrics", "list"),
        ({"output": {"formats": ["onyx"]}}, "/output/formats/0", "'safetensors'"),
        ({"output": {"formats": []}}, "/output/formats", "at least 1"),
        ({"output": {"dtype": "float16"}}, "/output/dtype", "'bfloat16'"),
        ({"queue": "tpu"}, "/queue", "'gpu'"),
        ({"priority": 10}, "/priority", "less than or equal to 9"),
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"seed": 10**400}, "/seed", "less than"),
        ({"limits": {"seconds": 0}}, "/limits/seconds", "greater than or equal to 1"),
        ({"calibration": {"dataset": "d", "samples": "3"}}, "/calibration/samples", "integer"),
        ({"calibration": {"dataset": "d", "samples": 10**9}}, "/calibration/samples", "less than or equal"),
        ({"calibration": {}}, "/calibration/dataset", "missing"),
        ({"metadata": {"a": 1}}, "/metadata/a", "string"),
        ({"metadata": {"a/b~c": 1}}, "/metadata/a~1b~0c", "string"),
        ({"model": ""}, "/model", "at least 1"),
        ({"model": "x" * 300}, "/model", "at most 256"),
        ({"model": None}, "/model", "string"),
        ({"options": {"a": [float("inf")]}}, "/options/a/0", "finite"),
        ({"metadata": {"a": "\ud800"}}, "/metadata", "Unicode"),
        ({"recipe": "wan\x00da"}, "/recipe", "Unicode"),
    ],
)
def test_other_mistakes(changes: dict[str, Any], where: str, words: str) -> None:
    fault = only(**changes)
    assert fault.pointer == where
    assert words in fault.message


def test_several_faults_are_all_named() -> None:
    found = {fault.pointer for fault in faults(queue="tpu", seed=-1, target={"sparsity": 2}, modle="x")}
    assert found == {"/queue", "/seed", "/target/sparsity", "/modle"}


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_only_objects(data: Any) -> None:
    with pytest.raises(SpecificationInvalid, match="JSON object"):
        parse(data)


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = {"a": deep}
    assert "deeper" in only(options=deep).message


def test_the_number_of_faults_is_bounded() -> None:
    assert len(faults(**{f"key{index}": 1 for index in range(10_000)})) == MAXIMUM_FAULTS


def test_pointers_are_always_text() -> None:
    assert pointer("a/b", 3, "c~d") == "/a~1b/3/c~0d"
    pointer("\ud800").encode()


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(LEAST).seed = 3  # type: ignore[misc]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*JobSpecification.model_fields, "other"]), JSON)
def test_nothing_but_a_specification_or_faults(key: str, value: Any) -> None:
    try:
        spec = parse({**LEAST, key: value})
    except SpecificationInvalid as error:
        for fault in error.errors:
            assert fault.message.endswith(".")
            assert not fault.pointer or fault.pointer.startswith("/")
    else:
        assert parse(spec.to_json()) == spec

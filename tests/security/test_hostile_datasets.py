"""Datasets that are damaged, empty, enormous or no datasets at all."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.errors import DatasetEmpty, DatasetFormatUnknown, DatasetInvalid
from compression.loading.dataset_files import (
    MAXIMUM_LABELS,
    MAXIMUM_LINE,
    DatasetFacts,
    Document,
    admit_dataset,
    iter_documents,
)
from compression.loading.sources import BytesSource
from tests.security.hostile import refused


def admit(data: bytes, name: str = "data.jsonl") -> DatasetFacts:
    return admit_dataset(name, BytesSource(data))


def lines(*rows: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


GOOD = {"text": "a sentence"}

BAD_LINES: list[tuple[str, object, str]] = [
    ("not JSON", b"{text}", "not valid JSON"),
    ("cut off", b'{"text": "abc', "not valid JSON"),
    ("two objects", b'{"text": "a"} {"text": "b"}', "not valid JSON"),
    ("a list", ["a"], "JSON object"),
    ("a string", "a", "JSON object"),
    ("a number", 3, "JSON object"),
    ("null", None, "JSON object"),
    ("no text", {"txt": "a"}, "did you mean 'text'"),
    ("empty object", {}, "'text' is missing"),
    ("text is a number", {"text": 3}, "'text' must be a string"),
    ("text is null", {"text": None}, "'text' must be a string"),
    ("empty text", {"text": ""}, "not empty"),
    ("blank text", {"text": " \n\t"}, "not empty"),
    ("not UTF-8", b'{"text": "\xff\xfe"}', "not UTF-8 text (byte 11"),
    ("Latin-1", '{"text": "Grüße"}'.encode("latin-1"), "not UTF-8"),
    ("half a surrogate", b'{"text": "\\ud800"}', "surrogate"),
    ("deep", b'{"text": ' + b"[" * 100_000, ""),
    ("digits", b'{"text": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ("label appears", {"text": "a", "label": 1}, "all must be alike"),
    ("messages appear", {"messages": [{"role": "user", "content": "a"}]}, "all must be alike"),
    ("label is a list", {"text": "a", "label": [1]}, "'label' must be a string"),
    ("label is true", {"text": "a", "label": True}, "'label' must be a string"),
    ("label is a fraction", {"text": "a", "label": 0.5}, "'label' must be a string"),
    ("label is negative", {"text": "a", "label": -1}, "from 0 on"),
    ("label is huge", {"text": "a", "label": 10**20}, "from 0 on"),
    ("label is empty", {"text": "a", "label": ""}, "1 to 256"),
    ("label is long", {"text": "a", "label": "x" * 300}, "1 to 256"),
    ("pairs appear", {"input": "a", "target": "b"}, "'input' and 'target', but earlier lines"),
    ("input without target", {"input": "a"}, "'target' must be a string"),
    ("empty target", {"input": "a", "target": " "}, "'target' must be a string that is not empty"),
    ("input is a list", {"input": ["a"], "target": "b"}, "'input' must be a string"),
    ("half a surrogate as target", b'{"input": "a", "target": "\\ud800"}', "surrogate"),
    ("messages is text", {"messages": "a"}, "must be a list"),
    ("messages is empty", {"messages": []}, "must be a list"),
    ("message is text", {"messages": ["a"]}, "item 0"),
    ("message without role", {"messages": [{"content": "a"}]}, "'role' and 'content'"),
    ("content is a list", {"messages": [{"role": "user", "content": []}]}, "'role' and 'content'"),
    ("a very long line", b'{"text": "' + b"a" * MAXIMUM_LINE + b'"}', "longer than"),
    ("a long line without end", b"a" * (MAXIMUM_LINE + 2), "longer than"),
]


@pytest.mark.parametrize(
    ("row", "words"), [case[1:] for case in BAD_LINES], ids=[case[0] for case in BAD_LINES]
)
def test_the_first_bad_line_is_named(row: object, words: str) -> None:
    error = refused(DatasetInvalid, lambda: admit(lines(GOOD, b"", GOOD, row, GOOD, b"{bad")), words)
    assert isinstance(error, DatasetInvalid)
    assert error.line == 4
    assert "data.jsonl, line 4:" in error.message


@pytest.mark.parametrize("data", [b"", b"\n", b"\n \n\t\n", b"\xef\xbb\xbf", b"\r\n\r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_empty(name: str, data: bytes) -> None:
    refused(DatasetEmpty, lambda: admit(data, name), "no document")


@pytest.mark.parametrize(
    "name",
    [
        "a.tar.gz",
        "a.csv",
        "a.json",
        "a",
        "",
        "jsonl",
        "a.jsonl.gz",
        "../../a.bin",
        "a.jsonl/..",
        "x" * 500,
    ],
)
def test_formats(name: str) -> None:
    refused(DatasetFormatUnknown, lambda: admit(lines(GOOD), name), ".jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: pickle.dumps([1]),
        lambda: gzip.compress(lines(GOOD)),
        lambda: b"PK\x03\x04\xff" + bytes(40),
        lambda: bytes(range(256)),
    ],
)
def test_files_that_are_no_text(name: str, make: Callable[[], bytes]) -> None:
    refused(DatasetInvalid, lambda: admit(make(), name))


def test_too_many_labels() -> None:
    data = lines(*({"text": "a", "label": index} for index in range(MAXIMUM_LABELS + 1)))
    refused(DatasetInvalid, lambda: admit(data), f"line {MAXIMUM_LABELS + 1}")


def test_labels_of_two_types() -> None:
    rows = ({"text": "a", "label": 1}, {"text": "b", "label": "x"})
    refused(
        DatasetInvalid,
        lambda: admit(lines(*rows)),
        "a string as 'label', but earlier lines have a whole number",
    )


def test_a_text_file_without_blank_lines() -> None:
    refused(DatasetInvalid, lambda: admit(b"word \n" * (MAXIMUM_LINE // 5), "a.txt"), "blank lines")


def test_what_is_taken_in() -> None:
    assert admit(lines(GOOD, GOOD)) == DatasetFacts("text", 2, 46, 20, None)
    labelled = admit(lines({"text": "a", "label": "pos"}, {"text": "b", "label": "neg", "source": "x"}))
    assert (labelled.kind, labelled.labels) == ("labelled", ["neg", "pos"])
    assert admit(lines({"text": "a", "label": 10}, {"text": "b", "label": 9})).labels == [9, 10]
    assert admit(lines({"messages": [{"role": "user", "content": "hi"}]})).kind == "messages"
    assert admit(lines({**GOOD, "label": None})).kind == "text"
    pairs = admit(lines({"input": "a", "target": "bc"}, {"input": "d", "target": "e", "id": 3}))
    assert pairs == DatasetFacts("pairs", 2, 70, 5, None)
    assert admit(lines({**GOOD, "input": "x", "target": 3})).kind == "text"
    assert DatasetFacts.from_json(labelled.to_json()) == labelled


def test_line_ends_marks_and_a_missing_last_newline(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + b'{"text": "a"}\r\n\r\n{"text": "b"}'
    assert admit(data).rows == 2
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xef\xbb\xbffirst line\r\nsecond line\r\n \r\n\r\nanother")
    assert list(iter_documents(text)) == [Document("first line\nsecond line"), Document("another")]
    assert admit(text.read_bytes(), "A.TXT").rows == 2


def test_conversations_become_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        lines({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{{x}}"}]})
    )
    assert [document.text for document in iter_documents(path)] == ["user: hi\nassistant: {{x}}"]


ROW = st.fixed_dictionaries(
    {"text": st.text(max_size=20)},
    optional={"label": st.integers() | st.text(max_size=3) | st.none(), "x": st.floats()},
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ROW.map(json.dumps) | st.text(max_size=12), max_size=5), st.sampled_from(["a.jsonl", "a.txt"])
)
def test_fuzz_lines(rows: list[str], name: str) -> None:
    data = "\n".join(rows).encode("utf-8", "surrogatepass")
    try:
        facts = admit(data, name)
    except DatasetInvalid as error:
        assert error.message.endswith(".")
        return
    assert facts.rows >= 1
    assert (facts.labels is not None) == (facts.kind == "labelled")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["a.jsonl", "a.txt"]))
def test_fuzz_bytes(data: bytes, name: str) -> None:
    try:
        assert admit(data, name).rows >= 1
    except DatasetInvalid as error:
        error.message.encode()

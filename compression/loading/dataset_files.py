"""Datasets in: text, checked line by line, and images, by what their file says of itself. No torch.

- `.jsonl`: one JSON object a line, all of the same kind: `{"text"}`, `{"text", "label"}` (label: a string
or a whole
  number, the same for all), `{"input", "target"}`, or `{"messages": [{"role", "content"}, ...]}`. Other keys
  are ignored, blank lines too.
- `.txt`: documents separated by blank lines; the lines of a document stay as they are.
- `.parquet`, `.npz`, `.zip`, `.tar`: images, see `compression.loading.images`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from compression.errors import DatasetEmpty, DatasetFormatUnknown, DatasetInvalid
from compression.loading.file_kinds import is_pickle
from compression.loading.images.containers import is_image_file, look
from compression.loading.sources import FileSource, PathSource, chunks
from compression.suggestions import broken_text, closest

Kind = Literal["text", "labelled", "pairs", "messages", "image"]
Label = int | str

FORMATS = (".jsonl", ".txt")
MAXIMUM_LINE = 8 << 20
MAXIMUM_LABELS = 10_000
MAXIMUM_MESSAGES = 10_000


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset that was taken in. `rows` counts documents or images, `bytes` those of the file, `characters`
    those of all texts; `labels` are the distinct labels in order, None where rows have none. Of images,
    labels that are names are in the order of their numbers, and an empty list means that only reading them
    would tell.
    """

    kind: Kind
    rows: int
    bytes: int
    characters: int
    labels: list[Label] | None

    def to_json(self) -> dict[str, Any]:
        """As JSON data; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetFacts:
        """Reads what `to_json` gave; other keys are ignored."""
        return cls(**{name: data[name] for name in ("kind", "rows", "bytes", "characters", "labels")})


@dataclass(frozen=True, slots=True)
class Document:
    """One row: its text, and its label if it has one; of a pair, `text` is the input."""

    text: str
    label: Label | None = None
    target: str | None = None


def admit_dataset(name: str, source: FileSource) -> DatasetFacts:
    """Reads a dataset of text through once, a line at a time, and what files of images say of themselves.
    `name` is its file name, which gives the format.

    Raises DatasetFormatUnknown, DatasetEmpty, or DatasetInvalid that names the first bad line.
    """
    images = is_image_file(name)
    if not images:
        _check_format(name)
    if is_pickle(source.read(0, 2)):
        raise DatasetFormatUnknown(
            f"{_short(name)}: this is a pickle, whatever its name says; upload JSON lines, text or images."
        )
    if images:
        found = look(_short(name), source)
        if not found.rows:
            raise DatasetEmpty(f"{_short(name)}: holds no image.")
        return DatasetFacts("image", found.rows, source.size, 0, found.labels)
    kind: Kind = "text"
    rows = characters = 0
    labels: set[Label] = set()
    for row_kind, document in _rows(name, source):
        kind = row_kind
        rows += 1
        characters += len(document.text) + len(document.target or "")
        if document.label is not None:
            labels.add(document.label)
    if not rows:
        raise DatasetEmpty(f"{_short(name)}: holds no document.")
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return DatasetFacts(kind, rows, source.size, characters, ordered if kind == "labelled" else None)


def iter_documents(path: Path) -> Iterator[Document]:
    """The documents of an admitted file in order, one at a time."""
    for _, document in _rows(path.name, PathSource(path)):
        yield document


def _check_format(name: str) -> None:
    if not name.lower().endswith(FORMATS):
        raise DatasetFormatUnknown(
            f"{_short(name)}: not a format for data; upload .jsonl (one JSON object a line), .txt "
            "(blank lines "
            "between documents), or images as .parquet, .npz, .zip or .tar."
        )


def _short(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1][:80]


def _rows(name: str, source: FileSource) -> Iterator[tuple[Kind, Document]]:
    _check_format(name)

    def refuse(line: int, what: str) -> NoReturn:
        raise DatasetInvalid(f"{_short(name)}, line {line}: {what}.", line=line)

    lines = _lines(chunks(source), refuse)
    return _text(lines, refuse) if name.lower().endswith(".txt") else _json_lines(lines, refuse)


Refuse = Callable[[int, str], NoReturn]


def _lines(pieces: Iterable[bytes], refuse: Refuse) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line."""
    number = 1
    rest = bytearray()
    for piece in pieces:
        rest += piece
        *complete, last = rest.split(b"\n")
        for line in complete:
            yield number, _decode(line, number, refuse)
            number += 1
        rest = last
        if len(rest) > MAXIMUM_LINE:
            refuse(number, f"longer than {MAXIMUM_LINE:,} bytes; break it into documents")
    if rest:
        yield number, _decode(rest, number, refuse)


def _decode(line: bytearray, number: int, refuse: Refuse) -> str:
    if len(line) > MAXIMUM_LINE:
        refuse(number, f"longer than {MAXIMUM_LINE:,} bytes; break it into documents")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(number, f"not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8")
    if number == 1:
        text = text.removeprefix("\ufeff")
    return text.removesuffix("\r")


def _text(lines: Iterator[tuple[int, str]], refuse: Refuse) -> Iterator[tuple[Kind, Document]]:
    paragraph: list[str] = []
    size = 0
    for number, line in lines:
        if line.strip():
            paragraph.append(line)
            size += len(line) + 1
            if size > MAXIMUM_LINE:
                refuse(
                    number,
                    f"a document of more than {MAXIMUM_LINE:,} characters; put blank lines between documents",
                )
            if "\x00" in line:
                refuse(number, "holds a NUL character; this is no text file")
        elif paragraph:
            yield "text", Document("\n".join(paragraph))
            paragraph, size = [], 0
    if paragraph:
        yield "text", Document("\n".join(paragraph))


def _json_lines(lines: Iterator[tuple[int, str]], refuse: Refuse) -> Iterator[tuple[Kind, Document]]:
    first: tuple[Kind, type | None] | None = None
    labels: set[Label] = set()
    for number, line in lines:
        if not line.strip():
            continue
        kind, document = _row(_object(line, number, refuse), number, refuse)
        shape = (kind, None if document.label is None else type(document.label))
        if first is None:
            first = shape
        elif shape != first:
            refuse(number, f"{_shape(*shape)}, but earlier lines have {_shape(*first)}; all must be alike")
        if document.label is not None and len(labels) <= MAXIMUM_LABELS:
            labels.add(document.label)
            if len(labels) > MAXIMUM_LABELS:
                refuse(number, f"more than {MAXIMUM_LABELS:,} different labels; is 'label' a class?")
        yield kind, document


def _shape(kind: Kind, label: type | None) -> str:
    if kind == "labelled":
        return "a string as 'label'" if label is str else "a whole number as 'label'"
    return {"text": "'text' without 'label'", "pairs": "'input' and 'target'"}.get(kind, "'messages'")


def _object(line: str, number: int, refuse: Refuse) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        refuse(number, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        refuse(number, "nested too deeply")
    except ValueError as error:
        refuse(number, f"not valid JSON: {str(error)[:100]}")
    if not isinstance(value, dict):
        refuse(number, 'must be a JSON object such as {"text": "..."}')
    return value


def _row(row: dict[str, Any], number: int, refuse: Refuse) -> tuple[Kind, Document]:
    if "messages" in row and "text" not in row:
        return "messages", Document(_conversation(row["messages"], number, refuse))
    if "input" in row and "text" not in row:
        source, target = (_string(row, key, number, refuse) for key in ("input", "target"))
        return "pairs", Document(source, target=target)
    if "text" not in row:
        valid = ("text", "label", "input", "target", "messages")
        near = next((closest(key, valid) for key in row if "did you mean" in closest(key, valid)), "")
        keys = ", ".join(repr(key[:40]) for key in list(row)[:6])
        refuse(number, f"'text' is missing{': ' + near if near else ''} (the line has: {keys or 'nothing'})")
    text = _string(row, "text", number, refuse)
    label = row.get("label")
    if label is None:
        return "text", Document(text)
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        refuse(number, "'label' must be a string or a whole number")
    if isinstance(label, int) and not 0 <= label < 1 << 31:
        refuse(number, "'label' must be a whole number from 0 on")
    if isinstance(label, str):
        if not 1 <= len(label) <= 256:
            refuse(number, "'label' must have 1 to 256 characters")
        _check_text(label, number, refuse)
    return "labelled", Document(text, label)


def _string(row: dict[str, Any], key: str, number: int, refuse: Refuse) -> str:
    """A string of a row that is not empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        refuse(number, f"'{key}' must be a string that is not empty")
    _check_text(value, number, refuse)
    return value


def _conversation(messages: Any, number: int, refuse: Refuse) -> str:
    """The text of a conversation: "role: content" lines. The model's chat template is a program and is
    never run."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAXIMUM_MESSAGES:
        refuse(number, f"'messages' must be a list of 1 to {MAXIMUM_MESSAGES:,} messages")
    parts: list[str] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            refuse(number, f"'messages', item {index}, must be an object with 'role' and 'content'")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role or not isinstance(content, str):
            refuse(number, f"'messages', item {index}, needs 'role' and 'content', both strings")
        parts.append(f"{role}: {content}")
    text = "\n".join(parts)
    _check_text(text, number, refuse)
    return text


def _check_text(text: str, number: int, refuse: Refuse) -> None:
    if broken_text(text):
        refuse(number, "holds half of a surrogate pair, which is no character")

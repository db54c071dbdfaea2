"""Decides whether an ONNX model is taken in, from its structure alone. No torch, no onnx package, no weight
read.

A model is one `.onnx` file, the files that it names for the data of its tensors, and if there are any
`config.json` (the names of its classes are kept) and `preprocessor_config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compression.errors import ConfigInvalid, FileRefused
from compression.loading.file_kinds import check_kinds, check_names
from compression.loading.json_files import read_object, write_object
from compression.loading.onnx.checks import check_graph
from compression.loading.onnx.header import read_header
from compression.loading.onnx.inspection import Weights, classes_of, describe, image_of, weigh
from compression.loading.onnx.parts import Graph, Header
from compression.loading.onnx.structure import read_graph
from compression.loading.onnx.wire import Reader
from compression.loading.sources import Files

ENDING = ".onnx"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAXIMUM_CONFIG = 4 << 20
MAXIMUM_LABELS = 100_000


@dataclass(frozen=True)
class AdmittedGraph:
    """An ONNX model that was taken in. `weights` are the files that hold its graph and tensors, of `stored`
    bytes; `config` has `id2label` where the classes have names; `rewritten` are files to store in place of
    those uploaded."""

    header: Header
    graph: Graph
    counted: Weights
    task: str
    stored: int
    config: dict[str, Any]
    inspection: dict[str, Any]
    weights: tuple[str, ...]
    rewritten: dict[str, bytes]
    dropped: tuple[str, ...]


def has_graph(files: Files) -> bool:
    """Whether files are meant as an ONNX model."""
    return any(path.lower().endswith(ENDING) for path in files)


def admit_graph(files: Files) -> AdmittedGraph:
    """Checks an uploaded ONNX model. Raises a kind of ModelRejected."""
    check_names(files)
    file = _model_file(files)
    check_kinds({file: files[file]})
    header, graph = read_structure(files, file)
    weights = (file, *sorted(graph.external))
    _check_others(files, file, graph)
    counted = weigh(graph, file)
    inspection = describe(header, graph, counted)
    image, classes = image_of(graph), classes_of(graph)
    names, dropped, rewritten = _config(files, classes)
    preprocessing, settings = _preprocessing(files, image)
    task = "image-classification" if image is not None and classes is not None else "other"
    stored = sum(files[path].size for path in weights)
    inspection |= {"image": image, "classes": classes, "preprocessing": preprocessing}
    inspection |= {"task": task, "dtype": counted.dtype, "bytes": stored}
    inspection["labels"] = None if names is None else list(names)
    return AdmittedGraph(
        header=header,
        graph=graph,
        counted=counted,
        task=task,
        stored=stored,
        config={} if names is None else _labels(names),
        inspection=inspection,
        weights=weights,
        rewritten=rewritten | settings,
        dropped=dropped,
    )


def read_structure(files: Files, file: str) -> tuple[Header, Graph]:
    """The header and the checked graph of one ONNX file among `files`. Raises OnnxInvalid,
    OnnxUnsupported."""
    reader = Reader(files[file])
    header, place = read_header(reader, file)
    sizes = {path: source.size for path, source in files.items() if path != file}
    graph = read_graph(reader, place, file, sizes)
    check_graph(header, graph, file)
    return header, graph


def _model_file(files: Files) -> str:
    found = sorted(path for path in files if path.lower().endswith(ENDING))
    if len(found) > 1:
        raise FileRefused(
            f"{found[0]} and {found[1]}: a model is one ONNX file with its data; upload each as a model "
            "of its own.",
            pointer=found[1],
        )
    if "/" in found[0]:
        raise FileRefused(f"{found[0]}: the ONNX file must not lie in a folder.", pointer=found[0])
    weights = next((path for path in files if path.lower().endswith(".safetensors")), None)
    if weights is not None:
        raise FileRefused(
            f"{found[0]} and {weights}: a model is either an ONNX file or a transformers folder; upload "
            "one of them.",
            pointer=found[0],
        )
    return found[0]


def _check_others(files: Files, file: str, graph: Graph) -> None:
    others = {path: source for path, source in files.items() if path != file and path not in graph.external}
    for path in others:
        if path.lower().endswith((".data", "_data", ".weights")):
            raise FileRefused(
                f"{path}: no tensor of {file} lies in it; remove it, or upload the ONNX file that belongs "
                "to it.",
                pointer=path,
            )
    check_kinds(others)


def _config(
    files: Files, classes: int | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...], dict[str, bytes]]:
    """The names of the classes, the keys that are left out, and the file to store."""
    if CONFIG not in files:
        return None, (), {}
    # It needs more than Python alone, and the check on a user's own machine does without.
    from compression.loading.config import refuse_code

    settings = read_object(files[CONFIG], CONFIG, MAXIMUM_CONFIG, ConfigInvalid)
    refuse_code(settings, CONFIG, ConfigInvalid)
    names = _names(settings.get("id2label"), classes)
    kept = {} if names is None else _labels(names)
    dropped = tuple(sorted(key for key in settings if key not in kept))
    return names, dropped, {CONFIG: write_object(kept)}


def _labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": {str(index): name for index, name in enumerate(names)}}


def _names(given: Any, classes: int | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not 1 <= len(given) <= MAXIMUM_LABELS:
        raise ConfigInvalid(
            f'{CONFIG}: id2label must map "0", "1", ... to the names of the classes.', pointer="/id2label"
        )
    names = []
    for index in range(len(given)):
        name = given.get(str(index))
        if not isinstance(name, str) or not 1 <= len(name) <= 256:
            raise ConfigInvalid(
                f'{CONFIG}: id2label has no name for class "{index}" of {len(given)} (1 to 256 characters).',
                pointer="/id2label",
            )
        names.append(name)
    if classes is not None and classes != len(names):
        raise ConfigInvalid(
            f"{CONFIG}: id2label names {len(names):,} classes, but the model gives {classes:,} scores.",
            pointer="/id2label",
        )
    return tuple(names)


def _preprocessing(
    files: Files, image: tuple[int, int, int] | None
) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    if PREPROCESSOR not in files:
        return None, {}
    from compression.loading.preprocessor import read_preprocessor

    found, settings = read_preprocessor(files, "", image or (3, 1, 1))
    return (None if found is None else found.model_dump(mode="json")), settings

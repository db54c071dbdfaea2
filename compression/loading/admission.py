"""Decides whether an uploaded model is taken in, from its headers and settings alone. No torch.

ONNX files are judged in `compression/loading/onnx`; here is what is said of both kinds.

Nothing of a model is executed, and no weight is read: names, first bytes, config.json, tokenizer settings,
the shard index and the headers of the safetensors files decide. What passes can be loaded by the stock
classes of transformers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, NoReturn

from compression.anatomy import inspect
from compression.anatomy.families.base import Expected
from compression.errors import ConfigInvalid, SafetensorsInvalid, TensorsMismatch
from compression.loading.config import Rewritten, rewrite_config
from compression.loading.file_kinds import check_files
from compression.loading.generation import rewrite_generation
from compression.loading.json_files import read_object, write_object
from compression.loading.onnx.admission import AdmittedGraph, admit_graph, has_graph
from compression.loading.preprocessor import read_preprocessor
from compression.loading.safetensors_header import MAXIMUM_HEADER, MAXIMUM_TENSORS, TensorHeader, read_header
from compression.loading.sources import BytesSource, Files, FileSource, PathSource, folder_sources
from compression.loading.tokenizer import check_tokenizer

__all__ = [
    "Admission",
    "BytesSource",
    "FileSource",
    "PathSource",
    "TensorHeader",
    "admit_model",
    "folder_sources",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OURS = "secateur/"  # what our own artifacts carry beside the model: masks and kept indices
MAXIMUM_INDEX = 32 << 20
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\.safetensors", re.ASCII)


Rewrites = Mapping[str, bytes]


@dataclass(frozen=True)
class Admission:
    """A model that was taken in.

    `parameters` counts the elements of its parameters (a tied head once, buffers not); `bytes` those of its
    weight files; `dtype` is the type of most of its parameters. `tensors` are the stored ones by name;
    `weights` the weight files. `rewritten` holds files to be stored in place of those uploaded (config.json
    among them); `dropped` names the keys of config.json that were left out. `inspection` is an `Inspection`
    as JSON data.

    Of the format `onnx`, `inspection` is that of a graph (compression/loading/onnx/inspection.py), `tensors`
    is empty, `config` has the names of the classes alone, and `task` is "other" unless it classifies images.
    """

    format: str
    architecture: str
    family: str
    task: str
    parameters: int
    bytes: int
    dtype: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorHeader]
    inspection: dict[str, Any]
    weights: tuple[str, ...]
    rewritten: Rewrites
    dropped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON data, without the tensors and the rewritten files."""
        data = {key: value for key, value in vars(self).items() if key not in ("tensors", "rewritten")}
        return {**data, "weights": list(self.weights), "dropped": list(self.dropped)}


def admit_model(files: Mapping[str, FileSource]) -> Admission:
    """Checks an uploaded model. `files` maps the path of each file inside the model to where it can be read.

    Raises a kind of ModelRejected that says which file, what is wrong with it and what to do.
    """
    if has_graph(files):
        return _of_graph(admit_graph(files))
    check_files(files)
    if "config.json" not in files:
        names = ", ".join(sorted(files)[:5])
        raise ConfigInvalid(
            f"config.json is missing; upload the whole folder that save_pretrained wrote (got: {names}).",
            pointer="config.json",
        )
    config = rewrite_config(files["config.json"])
    has_tokenizer, replaced = check_tokenizer(files)
    weights = _weight_files(files)
    tensors = _headers(files, weights)
    expected = config.family.expected(config.config, tensors)
    _check_tensors(tensors, expected, config)
    dtype = _dtype(tensors, expected)
    kept = {"dtype": dtype, **config.config}
    replaced["config.json"] = write_object(kept)
    if "generation_config.json" in files:
        replaced["generation_config.json"] = rewrite_generation(files["generation_config.json"])
    stored = sum(files[file].size for file in weights.files)
    inspection = inspect(kept, tensors, has_tokenizer=has_tokenizer)
    inspection = replace(inspection, other_bytes=stored - inspection.bytes)
    if inspection.image is not None:
        found, settings = read_preprocessor(files, str(kept["model_type"]), inspection.image)
        inspection = replace(
            inspection, preprocessing=None if found is None else found.model_dump(mode="json")
        )
        replaced |= settings
    return Admission(
        format="transformers",
        architecture=config.architecture,
        family=config.family.name,
        task=inspection.task,
        parameters=sum(tensors[name].elements for name in expected.required),
        bytes=stored,
        dtype=dtype,
        config=kept,
        tensors=tensors,
        inspection=inspection.to_json(),
        weights=weights.files,
        rewritten=replaced,
        dropped=config.dropped,
    )


def _of_graph(found: AdmittedGraph) -> Admission:
    return Admission(
        format="onnx",
        architecture="OnnxGraph",
        family="graph",
        task=found.task,
        parameters=found.counted.parameters,
        bytes=found.stored,
        dtype=found.counted.dtype,
        config=found.config,
        tensors={},
        inspection=found.inspection,
        weights=found.weights,
        rewritten=found.rewritten,
        dropped=found.dropped,
    )


@dataclass(frozen=True)
class _Weights:
    """The weight files, and the file that the shard index names for each tensor (None without an index)."""

    files: tuple[str, ...]
    index: Mapping[str, str] | None


def _weight_files(files: Files) -> _Weights:
    found = sorted(path for path in files if path.endswith(".safetensors") and not path.startswith(OURS))
    nested = [path for path in found if "/" in path]
    if nested:
        raise SafetensorsInvalid(
            f"{nested[0]}: weights must lie beside config.json, not in a folder below it.", pointer=nested[0]
        )
    if not found:
        raise SafetensorsInvalid(
            "No weights: the model needs model.safetensors, or shards with model.safetensors.index.json.",
            pointer=SINGLE,
        )
    if INDEX in files:
        index = _index(files[INDEX])
        named = sorted(set(index.values()))
        for path in named:
            if path not in files:
                raise SafetensorsInvalid(
                    f"{INDEX} names {path[:120]!r}, which was not uploaded.", pointer=INDEX
                )
        if named != found:
            extra = next(path for path in found if path not in named)
            raise SafetensorsInvalid(f"{extra}: not named in {INDEX}; remove it or the index.", pointer=extra)
        return _Weights(tuple(found), index)
    if found != [SINGLE]:
        what = f"must be called {SINGLE}" if len(found) == 1 else f"and others need {INDEX}, which is missing"
        raise SafetensorsInvalid(f"{found[0]} {what}.", pointer=found[0])
    return _Weights((SINGLE,), None)


def _index(source: FileSource) -> dict[str, str]:
    found = read_object(source, INDEX, MAXIMUM_INDEX, SafetensorsInvalid).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise SafetensorsInvalid(
            f"{INDEX}: 'weight_map' must map the name of each tensor to its file.", pointer=INDEX
        )
    for name, path in found.items():
        if not isinstance(path, str) or not _SHARD.fullmatch(path):
            raise SafetensorsInvalid(
                f"{INDEX}: {name[:80]!r} lies in {str(path)[:120]!r}, "
                "which is no name of a safetensors file beside it.",
                pointer=INDEX,
            )
    return found


def _headers(files: Files, weights: _Weights) -> dict[str, TensorHeader]:
    """All stored tensors. The shards share one allowance of header bytes and of tensors."""
    tensors: dict[str, TensorHeader] = {}
    left = MAXIMUM_HEADER
    for file in weights.files:
        header = read_header(files[file], file, maximum=left)
        left -= header.bytes
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise SafetensorsInvalid(
                    f"{name!r} is both in {tensors[name].file} and in {file}.", pointer=file
                )
            tensors[name] = tensor
        if len(tensors) > MAXIMUM_TENSORS:
            raise SafetensorsInvalid(f"More than {MAXIMUM_TENSORS:,} tensors in all shards.", pointer=file)
    if weights.index is not None:
        for name, file in weights.index.items():
            if name not in tensors or tensors[name].file != file:
                raise SafetensorsInvalid(
                    f"{INDEX}: {name[:80]!r} should lie in {file}, but does not.", pointer=INDEX
                )
        for name in tensors:
            if name not in weights.index:
                raise SafetensorsInvalid(
                    f"{INDEX}: {name!r} lies in {tensors[name].file}, but is not listed.", pointer=INDEX
                )
    return tensors


def _check_tensors(tensors: Mapping[str, TensorHeader], expected: Expected, rewritten: Rewritten) -> None:
    """Checks that exactly the tensors that the config asks for are there, in their shapes and in a float
    type."""
    missing = [name for name in expected.required if name not in tensors]
    known = expected.required.keys() | expected.optional.keys() | expected.buffers.keys()
    unknown = [name for name in tensors if name not in known]

    def refuse(what: str, name: str) -> NoReturn:
        raise TensorsMismatch(what, pointer=name)

    for name, (prefix, layers, key) in product(unknown, expected.lists):
        number = name.removeprefix(prefix).partition(".")[0]
        inside = name.startswith(prefix) and number.isdecimal() and len(number) <= 5
        if inside and int(number) >= layers:
            refuse(
                f"{tensors[name].file} holds {name!r}, but config.json says {key} = {layers} "
                f"(layers 0 to {layers - 1}).",
                name,
            )
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        if f"{missing[0]}_orig" in tensors:
            refuse(
                f"The files hold {missing[0]}_orig in place of {missing[0]}: masks that torch.nn.utils.prune "
                "left are not multiplied in. Do so on your machine: secateur convert FOLDER OUT, and upload "
                "OUT.",
                missing[0],
            )
        instead = get_close_matches(missing[0], unknown[:2000], n=1, cutoff=0.8)
        hint = f" The files hold {instead[0]!r} instead." if instead else ""
        refuse(
            f"{rewritten.architecture} needs the weight {missing[0]!r}{more}, which no file holds.{hint} "
            "Save the model again with save_pretrained.",
            missing[0],
        )
    if unknown:
        refuse(
            f"{rewritten.architecture} knows no weight {unknown[0]!r}"
            + (f" (nor {len(unknown) - 1:,} others)" if len(unknown) > 1 else "")
            + "; check 'architectures' in config.json, or save the model again with save_pretrained.",
            unknown[0],
        )
    _check_shapes(tensors, expected)


def _check_shapes(tensors: Mapping[str, TensorHeader], expected: Expected) -> None:
    for name, shape in {**expected.required, **expected.optional}.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise TensorsMismatch(
                f"{tensor.file}: {name!r} has the shape {list(tensor.shape)}, "
                f"but by config.json it must be {list(shape)}.",
                pointer=name,
            )
        if tensor.dtype not in DTYPES:
            raise TensorsMismatch(
                f"{tensor.file}: {name!r} has the type {tensor.dtype}; weights must be {', '.join(DTYPES)}. "
                "Convert the model, for instance with model.float().save_pretrained(...).",
                pointer=name,
            )


def _dtype(tensors: Mapping[str, TensorHeader], expected: Expected) -> str:
    count: Counter[str] = Counter()
    for name in expected.required:
        count[tensors[name].dtype] += tensors[name].elements
    return DTYPES[count.most_common(1)[0][0]]

"""Writing a GGUF file, one tensor at a time and always with the same bytes for the same model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from compression.anatomy import gguf as runtime
from compression.errors import FormatImpossible
from compression.evaluation.types import TensorSource
from compression.export.gguf.fields import ALIGNMENT, Field, Kind, model_fields
from compression.export.gguf.tensors import ROPE_FACTORS, Item, forward, items, rope_factors
from compression.export.gguf.tokenizer import POINTER, Tokenizer, read_tokenizer

NAME = "model.gguf"

TYPES = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
_VALUE = gguf.GGUFValueType
KINDS: Mapping[Kind, tuple[gguf.GGUFValueType, gguf.GGUFValueType | None]] = {
    "u32": (_VALUE.UINT32, None),
    "f32": (_VALUE.FLOAT32, None),
    "bool": (_VALUE.BOOL, None),
    "str": (_VALUE.STRING, None),
    "[bool]": (_VALUE.ARRAY, _VALUE.BOOL),
    "[i32]": (_VALUE.ARRAY, _VALUE.INT32),
    "[f32]": (_VALUE.ARRAY, _VALUE.FLOAT32),
    "[str]": (_VALUE.ARRAY, _VALUE.STRING),
}


@dataclass(frozen=True)
class Plan:
    """What a file will hold besides the weights' values: its keys, its tensors with the type of each, and
    what llama.cpp does differently with the model, as sentences."""

    arch: str
    fields: list[Field]
    items: list[Item]
    dtypes: list[torch.dtype]
    factors: Tensor | None
    remarks: list[str]


def check(config: Mapping[str, Any], folder: Path) -> Tokenizer:
    """Raises FormatImpossible unless a model of this configuration, with the tokenizer in `folder`, can be
    written."""
    faults = runtime.faults(config)
    if faults:
        raise FormatImpossible(f"No GGUF can be written of this model: {'; '.join(faults)}.", pointer=POINTER)
    return read_tokenizer(folder, config)


def plan(config: Mapping[str, Any], source: TensorSource, folder: Path) -> Plan:
    """The plan of the file of a written model: its `config`, its tensors, and `folder` with its tokenizer.

    Raises FormatImpossible.
    """
    tokenizer = check(config, folder)
    arch = runtime.architecture_of(config)
    assert arch is not None
    found = items(config, source.names())
    dtypes = [_dtype(item, source) for item in found]
    sizes: Counter[torch.dtype] = Counter()
    for item in found:
        shape = source.shape(item.sources[0])
        sizes[source.dtype(item.sources[0])] += torch.Size(shape).numel() * len(item.sources)
    main = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
    name = f"{config['architectures'][0]}, pruned"
    return Plan(
        arch=arch,
        fields=[*model_fields(config, name, main), *tokenizer.fields],
        items=found,
        dtypes=dtypes,
        factors=rope_factors(config),
        remarks=[*runtime.remarks(config), *tokenizer.remarks],
    )


def _dtype(item: Item, source: TensorSource) -> torch.dtype:
    """llama.cpp computes with vectors (norms, biases) in float32 alone."""
    vector = len(source.shape(item.sources[0])) == 1 or item.change == "flat"
    return torch.float32 if vector or item.full else source.dtype(item.sources[0])


def write(path: Path, made: Plan, source: TensorSource) -> None:
    """Write the file (under its final name only when whole)."""
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(None, made.arch)
    writer.data_alignment = ALIGNMENT
    for field in made.fields:
        kind, part = KINDS[field.kind]
        writer.add_key_value(field.key, field.value, kind, part)
    if made.factors is not None:
        _announce(writer, ROPE_FACTORS, tuple(made.factors.shape), torch.float32)
    for item, dtype in zip(made.items, made.dtypes, strict=True):
        _announce(writer, item.name, _shape(item, source), dtype)
    writer.write_header_to_file(temporary)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if made.factors is not None:
        _data(writer, made.factors)
    for item, dtype in zip(made.items, made.dtypes, strict=True):
        _data(writer, forward(item, source.tensor).to(dtype))
    writer.flush()
    for file in writer.fout or []:
        os.fsync(file.fileno())
    writer.close()
    temporary.replace(path)


def _shape(item: Item, source: TensorSource) -> tuple[int, ...]:
    shape = tuple(source.shape(item.sources[0]))
    if len(item.sources) > 1:
        return (len(item.sources), *shape)
    if item.change == "transpose":
        return shape[::-1]
    if item.change == "flat":
        return (torch.Size(shape).numel(),)
    if item.change in ("gate", "up"):
        return (shape[0], shape[1] // 2, shape[2])
    return shape


def _announce(writer: gguf.GGUFWriter, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    size = torch.Size(shape).numel() * dtype.itemsize
    # numpy has no bfloat16: types are named, and the bytes handed over as they are.
    writer.add_tensor_info(name, shape, torch.empty(0, dtype=torch.int8).numpy().dtype, size, TYPES[dtype])


def _data(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    writer.write_tensor_data(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

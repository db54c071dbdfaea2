"""Reading a GGUF file back: every key and every weight must be what the folder beside it says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.gguf_reader import ReaderTensor
from torch import Tensor

from compression.export.gguf.fields import Field
from compression.export.gguf.file import KINDS, TYPES, Plan, plan
from compression.export.gguf.reader import Reader, packed, value, whole_numbers
from compression.export.gguf.tensors import ROPE_FACTORS, Item
from compression.loading.weights import WeightReader

_DTYPES = {code: dtype for dtype, code in TYPES.items()}
_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
# The keys that a file must repeat in the shapes of its tensors: (tensor, axis of [rows, columns]) of each.
_WIDTHS = {
    "vocab_size": ("token_embd.weight", 0),
    "embedding_length": ("token_embd.weight", 1),
    "feed_forward_length": ("blk.0.ffn_down.weight", 1),
    "expert_count": ("blk.0.ffn_gate_inp.weight", 0),
}


def faults(path: Path) -> list[str]:
    """What is wrong with the file at `path`, by the model folder that it lies in; empty if nothing is."""
    folder = path.parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = WeightReader(folder)
    wanted = plan(config, weights, folder)
    try:
        reader = Reader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        return [f"{path.name} cannot be read back: {type(error).__name__}"]
    stored = {tensor.name: tensor for tensor in reader.tensors}
    found = [*_field_faults(reader, wanted), *_width_faults(reader, wanted.arch, stored)]
    found += _tensor_faults(path, wanted, weights, stored)
    return [f"{path.name}: {fault}" for fault in found]


def _field_faults(reader: gguf.GGUFReader, wanted: Plan) -> Iterator[str]:
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    expected = [Field("general.architecture", "str", wanted.arch), *wanted.fields]
    for field in expected:
        found = fields.pop(field.key, None)
        if found is None:
            yield f"the key {field.key} is missing"
            continue
        kind, part = KINDS[field.kind]
        types = [kind] if part is None else [kind, part]
        if list(found.types) != types or value(found) != _as_read(field):
            yield f"the key {field.key} is not what config.json and tokenizer.json say"
    if fields:
        yield f"there are keys that nobody wrote: {', '.join(sorted(fields)[:3])}"


def _as_read(field: Field) -> Any:
    """A value as the file holds it: numbers in 32 bits, lists as their bytes."""
    part = KINDS[field.kind][1]
    if part is not None:
        return packed(list(field.value), part)
    return float(np.float32(field.value)) if field.kind == "f32" else field.value


def _width_faults(reader: gguf.GGUFReader, arch: str, stored: Mapping[str, ReaderTensor]) -> Iterator[str]:
    def number(key: str, layer: int = 0) -> int:
        found = reader.fields[f"{arch}.{key}"]
        return whole_numbers(found)[layer] if len(found.types) > 1 else int(found.contents())

    def rows(name: str) -> int:
        return int(stored[name].shape[-1])

    for key, (name, axis) in _WIDTHS.items():
        if name in stored and f"{arch}.{key}" in reader.fields:
            if number(key) != int(stored[name].shape[1 - axis]):
                yield f"{arch}.{key} is {number(key)}, but {name} has {int(stored[name].shape[1 - axis])}"
    size, other = number("attention.key_length"), number("attention.value_length")
    for layer in range(number("block_count")):
        block = f"blk.{layer}"
        heads, groups = number("attention.head_count", layer), number("attention.head_count_kv", layer)
        widths = {"q": heads * size, "k": groups * size, "v": groups * other}
        if f"{block}.attn_norm.weight" not in stored:
            yield f"{block} is missing"
        for part, width in widths.items():
            name = f"{block}.attn_{part}.weight"
            if name in stored and rows(name) != width:
                yield f"{name} has {rows(name)} rows, but the keys say {width}"
        fused = f"{block}.attn_qkv.weight"
        if fused in stored and rows(fused) != sum(widths.values()):
            yield f"{fused} has {rows(fused)} rows, but the keys say {sum(widths.values())}"


def _tensor_faults(
    path: Path, wanted: Plan, weights: WeightReader, stored: dict[str, ReaderTensor]
) -> Iterator[str]:
    left = dict(stored)
    if wanted.factors is not None:
        tensor = left.pop(ROPE_FACTORS, None)
        if tensor is None or not _same(_read(path, tensor), wanted.factors):
            yield f"{ROPE_FACTORS} is not what config.json says"
    for item, dtype in zip(wanted.items, wanted.dtypes, strict=True):
        tensor = left.pop(item.name, None)
        if tensor is None:
            yield f"the tensor {item.name} is missing"
            continue
        if _DTYPES.get(tensor.tensor_type) != dtype:
            yield f"the tensor {item.name} is of type {tensor.tensor_type.name}"
            continue
        yield from _differences(item, _read(path, tensor), weights)
    if left:
        yield f"there are tensors that nobody wrote: {', '.join(sorted(left)[:3])}"


def _read(path: Path, tensor: ReaderTensor) -> Tensor:
    """The tensor as [rows, columns], its bytes read into memory of their own (docs/decisions/0011)."""
    dtype = _DTYPES[tensor.tensor_type]
    data = np.fromfile(path, np.uint8, count=int(tensor.n_bytes), offset=int(tensor.data_offset))
    return torch.from_numpy(data).view(dtype).reshape([int(size) for size in reversed(tensor.shape)])


def _differences(item: Item, found: Tensor, weights: WeightReader) -> Iterator[str]:
    parts = list(found) if len(item.sources) > 1 else [found]
    if len(parts) != len(item.sources):
        yield f"the tensor {item.name} holds {len(parts)} experts, not {len(item.sources)}"
        return
    for part, name in zip(parts, item.sources, strict=True):
        weight = _half(item, weights.tensor(name))
        if item.change == "plus_one":
            # Adding one rounds: of these the sum is compared, in float64 and then rounded once.
            sums = torch.from_numpy((weight.double().numpy() + np.float64(1)).astype(np.float32))
            same = _same(part, sums)
        else:
            same = _same(original(item, part), weight.to(part.dtype))
        if not same:
            yield f"the tensor {item.name} does not give {name} back"


def _half(item: Item, weight: Tensor) -> Tensor:
    """The rows of experts stored together that the tensor holds."""
    if item.change not in ("gate", "up"):
        return weight
    return weight.chunk(2, dim=1)[0 if item.change == "gate" else 1]


def original(item: Item, tensor: Tensor) -> Tensor:
    """The stored weight of a tensor of the file: the change of `tensors.changed`, undone."""
    if item.change == "rotary":
        size = tensor.shape[0] // item.heads
        row = torch.arange(tensor.shape[0])
        head, place = row // size, row % size
        half = size // 2
        return tensor[head * size + torch.where(place < half, 2 * place, 2 * (place - half) + 1)]
    if item.change == "transpose":
        return tensor.transpose(0, 1)
    return tensor.unsqueeze(0) if item.change == "flat" else tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = _BITS[a.dtype]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))

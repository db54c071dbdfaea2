"""Mutations of ONNX files by a seed, and what must hold of whatever comes out."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from compression.errors import ModelRejected
from compression.loading.admission import BytesSource, admit_model
from tests.onnx_wire import external, graph, long, model, node, small_network, tensor, varint

LONGEST = 20.0
"""Seconds that judging one file of a few MB may take this process."""
_TOKENS = (
    b"", b"\x00", b"\x80", b"\xff" * 10, b"\xff" * 9 + b"\x01", varint(1 << 62), varint(1 << 31),
    b"\x0b", b"\x0c", long(1, b""), long(5, b""), long(9, b""), long(13, b""), b"..", b"/", b"\xc0\x80",
)  # fmt: skip


@dataclass
class Tally:
    """What came of the files: taken in or refused, and the longest that one took."""

    taken: int = 0
    refused: int = 0
    longest: float = 0.0


def seeds(models: Path | None) -> list[bytes]:
    """Sound files: small ones made here, and the reference models of at most 4 MB."""
    small = [
        model(),
        small_network().SerializeToString(),
        model(graph(tensors=[tensor(raw=None, more=external(location="w.data", offset="0", length="16"))])),
        model(graph(nodes=[node(more=long(5, long(1, "a") + long(3, b"")))])),
    ]
    real = sorted(models.glob("*/*.onnx")) if models is not None and models.is_dir() else []
    return small + [path.read_bytes() for path in real if path.stat().st_size < 4_000_000]


def damaged(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A file changed by its bytes or, one time in three, by its graph."""
    return rewired(data, rng) if rng.randrange(3) == 0 else mutated(data, others, rng)


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A file with one to eight faults: bits, bytes, pieces cut, doubled, moved or taken from another file."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = (
            rng.randrange(len(made) + 1) if rng.random() < 0.3 else rng.randrange(min(len(made), 2000) + 1)
        )
        length = min(len(made) - place, int(rng.paretovariate(0.7)), 50_000)
        kind = rng.randrange(7)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(made):
            made[place] = rng.randrange(256)
        elif kind == 2:
            del made[place : place + length]
        elif kind == 3:
            made[place:place] = made[place : place + length]
        elif kind == 4:
            made[place:place] = rng.choice(_TOKENS)
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            made[place : place + length] = other[start : start + length]
        else:
            made = made[:place] if rng.random() < 0.2 else made
        if not made:
            break
    return bytes(made)


def rewired(data: bytes, rng: random.Random) -> bytes:
    """A file that is sound as a message, whose graph has one to four faults."""
    made = onnx.load_from_string(data)
    body = made.graph
    names = [name for each in body.node for name in (*each.input, *each.output)]
    for _ in range(rng.randint(1, 4)):
        each = rng.choice(body.node)
        stored = rng.choice(body.initializer) if body.initializer else onnx.TensorProto()
        kind = rng.randrange(9)
        if kind == 0 and each.input:
            each.input[rng.randrange(len(each.input))] = rng.choice([*names, "", "ghost"])
        elif kind == 1 and each.output:
            each.output[rng.randrange(len(each.output))] = rng.choice(names)
        elif kind == 2:
            each.op_type = rng.choice(["Relu", "Loop", "Conv", "Gemm", "", "Foo", "BatchNormalization"])
        elif kind == 3 and stored.dims:
            stored.dims[rng.randrange(len(stored.dims))] = rng.choice([0, 1, 2, -1, 1 << 62, 1 << 31])
        elif kind == 4:
            stored.data_type = rng.randrange(30)
        elif kind == 5:
            stored.float_data.extend([1.0] * rng.randrange(3))
        elif kind == 6:
            body.node.extend([each])
        elif kind == 7 and len(body.node) > 1:
            body.node.remove(each)
        else:
            made.opset_import[0].version = rng.randrange(11, 25)
    return bytes(made.SerializeToString())


def judge(data: bytes, tally: Tally) -> None:
    """Admits one file; anything but taking it in or refusing it in words is a fault, and so is a hang."""
    started = time.process_time()
    try:
        admission = admit_model({"model.onnx": BytesSource(data), "w.data": BytesSource(bytes(16))})
        assert admission.parameters > 0
        tally.taken += 1
    except ModelRejected as error:
        assert error.message.endswith(".")
        assert len(error.message) < 1000
        assert error.message.isprintable()
        tally.refused += 1
    spent = time.process_time() - started
    tally.longest = max(tally.longest, spent)
    assert spent < LONGEST

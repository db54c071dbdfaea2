"""The header of an array file (.npy), read without NumPy and without its pickles. No torch.

(Format: numpy.lib.format, NEP 1.)
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass

from compression.loading.images.limits import refuse

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 4096
_TYPE = re.compile(r"[<>|=][biu][1248]", re.ASCII)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """`dtype` as the file writes it ("|u1"); the data begins `offset` bytes into the file, in C order."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * int(self.dtype[2:])


def array_header(name: str, what: str, head: bytes) -> ArrayHeader:
    """The header at the beginning of an array file. `what` is its name in the npz file `name`.

    Only arrays of booleans and whole numbers pass; Python objects would have to be unpickled. Raises
    DatasetInvalid.
    """
    if not head.startswith(MAGIC) or len(head) < 12:
        refuse(name, f"{what} in it is no NumPy array")
    wide = head[6] != 1
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    if head[6] not in (1, 2, 3) or length > LONGEST_HEADER or start + length > len(head):
        refuse(name, f"{what} in it has a damaged header")
    try:
        values = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
        dtype, fortran, shape = values["descr"], values["fortran_order"], values["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        refuse(name, f"{what} in it has a damaged header")
    if isinstance(dtype, str) and dtype[1:2] == "O":
        refuse(
            name, f"{what} in it holds Python objects, which only unpickling would read; save plain numbers"
        )
    if not isinstance(dtype, str) or not _TYPE.fullmatch(dtype):
        refuse(name, f"{what} in it has the type {str(dtype)[:40]!r}; it must hold whole numbers")
    if fortran is not False:
        refuse(name, f"{what} in it is in Fortran order; save numpy.ascontiguousarray(...) of it")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(_is_size(side) for side in shape):
        refuse(name, f"{what} in it has a damaged header")
    return ArrayHeader(dtype, shape, start + length)


def _is_size(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 1 << 40

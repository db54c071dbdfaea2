"""Collection of blobs that nobody refers to any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from service.blobs import BlobStore
from service.db import Database
from service.storage.repository import referenced

_BATCH: Final = 500


@dataclass(frozen=True)
class Collected:
    """How many blobs were looked at, how many deleted, and how many leftovers of interrupted writers."""

    seen: int
    deleted: int
    leftovers: int


def _batches(digests: Iterable[str]) -> Iterator[list[str]]:
    source = iter(digests)
    while batch := list(islice(source, _BATCH)):
        yield batch


def collect_garbage(database: Database, blobs: BlobStore, minimum_age: float = 24 * 3600.0) -> Collected:
    """Deletes blobs that no row refers to and that were last stored `minimum_age` seconds ago or earlier.

    A blob is stored before the row that refers to it is committed; the age covers the time between. Storing
    equal content again makes a blob young again, and the store compares the age once more when it deletes,
    so a blob that is being used again right now stays. Any number of collectors may run at the same time.
    """
    seen = deleted = 0
    old = (sha256 for sha256, age in blobs.iterate() if age >= minimum_age)
    for batch in _batches(old):
        seen += len(batch)
        with database.read() as session:
            kept = referenced(session, batch)
        deleted += sum(blobs.delete(sha256, minimum_age) for sha256 in batch if sha256 not in kept)
    return Collected(seen, deleted, blobs.sweep(minimum_age))

"""Random numbers that depend on a job's seed and a name alone, not on what ran before."""

from __future__ import annotations

import hashlib

import torch


def site_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one name (a site, a step) of a job."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""How the stored factors of a weight are called that is the product of two. No torch."""

from __future__ import annotations

_FACTORS = ("down.weight", "up.weight", "up.bias")


def factor_names(weight: str) -> tuple[str, str]:
    """The names of the stored factors of a weight: (down [rank, in], up [out, rank]); W = up @ down."""
    stem = weight.removesuffix("weight")
    return f"{stem}down.weight", f"{stem}up.weight"


def bias_names(weight: str) -> tuple[str, str]:
    """The name of the bias beside a weight, and that of the same bias beside its factors."""
    stem = weight.removesuffix("weight")
    return f"{stem}bias", f"{stem}up.bias"


def packed_names(weight: str) -> tuple[str, str]:
    """The names that stand for the `up` factor in a result whose codes are sparse: its entries [out, s], and
    one bit for each of its places, uint8 [out, ceil(rank / 8)]."""
    stem = weight.removesuffix("weight")
    return f"{stem}up.values", f"{stem}up.mask"


def weight_of(name: str) -> str | None:
    """The name of the weight that a tensor would be a factor (or the bias beside one) of; None if it is not
    called so."""
    for leaf in _FACTORS:
        if name.endswith("." + leaf):
            return f"{name.removesuffix(leaf)}weight"
    return None

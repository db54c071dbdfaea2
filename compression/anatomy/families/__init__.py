"""The families of models that can be taken in, one file each. No torch."""

from __future__ import annotations

from compression.anatomy.families.base import Family
from compression.anatomy.families.bert import FAMILY as BERT
from compression.anatomy.families.llama import FAMILY as LLAMA
from compression.errors import ArchitectureUnknown
from compression.suggestions import closest

FAMILIES: tuple[Family, ...] = (LLAMA, BERT)

# Names, for recipes that suit every family of a kind.
DECODERS: tuple[str, ...] = ("llama",)
ENCODERS: tuple[str, ...] = ("bert",)


def architectures() -> dict[str, Family]:
    """Every architecture that is covered, with its family."""
    return {architecture: family for family in FAMILIES for architecture in family.architectures}


def family_of(architecture: str) -> Family:
    """The family that covers an architecture. Raises ArchitectureUnknown that lists those there are."""
    known = architectures()
    if architecture not in known:
        raise ArchitectureUnknown(
            f"config.json: the architecture {architecture[:80]!r} is not supported: "
            f"{closest(architecture, known)}.",
            pointer="/architectures",
        )
    return known[architecture]


def family(name: str) -> Family:
    """The family of this name. Raises KeyError if there is none."""
    return {item.name: item for item in FAMILIES}[name]

"""The families of models that can be taken in, one file each. No torch."""

from __future__ import annotations

from compression.anatomy.families.base import Family
from compression.anatomy.families.bert import FAMILY as BERT
from compression.anatomy.families.bloom import FAMILY as BLOOM
from compression.anatomy.families.distilbert import FAMILY as DISTILBERT
from compression.anatomy.families.falcon import FAMILY as FALCON
from compression.anatomy.families.gemma import FAMILY as GEMMA
from compression.anatomy.families.gpt2 import FAMILY as GPT2
from compression.anatomy.families.gpt_neox import FAMILY as GPT_NEOX
from compression.anatomy.families.llama import FAMILY as LLAMA
from compression.anatomy.families.moe import FAMILY as MOE
from compression.anatomy.families.opt import FAMILY as OPT
from compression.anatomy.families.phi import FAMILY as PHI
from compression.anatomy.families.roberta import FAMILY as ROBERTA
from compression.anatomy.families.swin import FAMILY as SWIN
from compression.anatomy.families.t5 import FAMILY as T5
from compression.anatomy.families.vit import FAMILY as VIT
from compression.errors import ArchitectureUnknown
from compression.suggestions import closest

_DECODERS: tuple[Family, ...] = (LLAMA, GEMMA, PHI, OPT, GPT2, GPT_NEOX, FALCON, BLOOM, MOE)
_ENCODERS: tuple[Family, ...] = (BERT, ROBERTA, DISTILBERT, T5, VIT, SWIN)
FAMILIES = _DECODERS + _ENCODERS

# Names, for recipes that suit every family of a kind.
DECODERS = tuple(family.name for family in _DECODERS)
ENCODERS = tuple(family.name for family in _ENCODERS)


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

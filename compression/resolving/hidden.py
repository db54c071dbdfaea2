"""Whether channels of the residual stream can go from a model, and its basis be turned. No torch."""

from __future__ import annotations

from compression.anatomy.families import family_of
from compression.anatomy.formats import GGUF
from compression.anatomy.hidden_width import HIDDEN, turned
from compression.anatomy.residual import TWO_NORMS
from compression.anatomy.structures import GRANULARITIES, unit_word
from compression.resolving.draft import Draft

_ENERGY = "activation-energy"
# llama.cpp takes the embeddings for the head of these, and a turned basis unties the two.
_ALWAYS_TIED = ("GemmaForCausalLM",)


def why_not(draft: Draft, granularity: str) -> str:
    """Why the model cannot lose what the granularity removes, where its inspection says so: words that follow
    what is refused, or nothing."""
    kinds = GRANULARITIES.get(granularity, ())
    reasons = {one["kind"]: one["reason"] for one in draft.inspection.structure_limits}
    # Inspections of older versions name no reasons.
    keeps = family_of(draft.inspection.architecture).keeps_hidden
    found = reasons if reasons else {HIDDEN: keeps}
    words = [f"no {unit_word(kind)}s, since {found[kind]}" for kind in kinds if found.get(kind)]
    return f": {'; '.join(words)}" if words else ""


def check_hidden(draft: Draft) -> None:
    """Notes a fault if the residual stream cannot be turned as `options.rotation` says."""
    specification, architecture = draft.specification, draft.inspection.architecture
    if not turned(specification):
        return
    if specification.structure.granularity != HIDDEN:
        draft.refuse(
            "/options/rotation",
            "Only the residual stream is turned: use the granularity 'hidden', or write 'none'.",
            "option_conflict",
        )
        return
    if specification.options.get("criterion") != _ENERGY:
        draft.refuse(
            "/options/criterion",
            f"The directions of a turned residual stream are ordered by {_ENERGY}: choose it, or write "
            "options.rotation 'none'.",
            "option_conflict",
        )
    family = family_of(architecture)
    if not family.keeps_hidden and family.norms({"model_type": _model_type(architecture)}).after:
        draft.refuse(
            "/options/rotation",
            f"The residual stream of {architecture} cannot be turned: {TWO_NORMS}. Use the recipe "
            "minitron-width with the granularity 'hidden', which keeps the basis.",
            "option_conflict",
        )
    if GGUF in specification.output.formats and architecture in _ALWAYS_TIED:
        draft.refuse(
            "/output/formats",
            f"A turned {architecture} has a head of its own, but llama.cpp always takes its embeddings: "
            'leave "gguf" out.',
            "format_unsupported",
        )


def _model_type(architecture: str) -> str:
    return family_of(architecture).architectures[architecture].model_type

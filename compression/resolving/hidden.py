"""Whether channels of the residual stream can go from a model, and its basis be turned. No torch."""

from __future__ import annotations

from compression.anatomy.families import family_of
from compression.anatomy.formats import GGUF
from compression.anatomy.hidden_width import HIDDEN, turned
from compression.anatomy.residual import TWO_NORMS
from compression.anatomy.structures import GRANULARITIES, unit_word
from compression.anatomy.varied import PACKAGED
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


def check_skip_layout(draft: Draft) -> None:
    """Notes a fault if the result, whose norms read the stream in bases of their own, cannot be written as
    `output` says."""
    output, architecture = draft.specification.output, draft.inspection.architecture
    if architecture not in PACKAGED:
        draft.refuse(
            "/options/rotation",
            f"There is no packaged code for {architecture} (there is for {', '.join(PACKAGED)}), which "
            "weights on skip connections need: write 'shared', for a stock checkpoint.",
            "option_conflict",
        )
    elif output.layout != "packaged":
        given = "" if output.layout is None else ": there is nothing to pad"
        draft.refuse(
            "/output/layout",
            f'Weights on skip connections have no stock config{given}. Write "packaged" (transformers loads '
            "it with the code in the artifact), or options.rotation 'shared', for a stock checkpoint.",
            "layout_missing" if output.layout is None else "layout_unsupported",
        )
    if GGUF in output.formats:
        draft.refuse(
            "/output/formats",
            'llama.cpp has no weights on skip connections: leave "gguf" out, or write options.rotation '
            "'shared'.",
            "format_unsupported",
        )
    if draft.specification.target.kind == "latency":
        draft.refuse(
            "/target/latency",
            "The times of layers are those of stock ones, without weights on their skip connections: aim at "
            "sparsity, parameters, macs or bytes.",
            "target_unsupported",
        )


def _model_type(architecture: str) -> str:
    return family_of(architecture).architectures[architecture].model_type

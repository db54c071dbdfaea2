"""In which formats and type the result is written, and whether the model can be. No torch."""

from __future__ import annotations

from compression.anatomy.formats import FORMATS, SAFETENSORS
from compression.anatomy.graph import FORMAT as GRAPH
from compression.resolving.draft import Draft


def resolve_output(draft: Draft) -> None:
    """Fills in the type, orders the formats, and refuses those that the model does not offer."""
    output, inspection = draft.specification.output, draft.inspection
    dtype = output.dtype or (inspection.dtype if inspection.dtype in ("float32", "bfloat16") else None)
    formats = [name for name in FORMATS if name in output.formats]
    if SAFETENSORS not in formats:
        asked = ", ".join(f'"{name}"' for name in (SAFETENSORS, *formats))
        draft.refuse(
            "/output/formats",
            f"The safetensors are always written, and other formats beside them: write [{asked}].",
            "format_unsupported",
        )
    for index, name in enumerate(output.formats):
        reason = _reason(draft, name)
        if reason:
            offered = ", ".join(inspection.formats)
            draft.refuse(
                f"/output/formats/{index}",
                f"The result cannot be written as {name!r}: {reason}. Formats of this model: {offered}.",
                "format_unsupported",
            )
    draft.update("output", dtype=dtype, formats=formats)


def _reason(draft: Draft, name: str) -> str:
    """Why the result cannot be written so; empty if it can."""
    granularity = draft.specification.structure.granularity
    if name == GRAPH:
        return "only a model that came as ONNX is"
    for limit in draft.inspection.format_limits:
        cuts = limit["granularities"]
        if limit["format"] == name and not cuts:
            return str(limit["reason"])
        if limit["format"] == name and granularity in cuts:
            return f"{limit['reason']}, and {granularity!r} changes that"
    return "" if name in draft.inspection.formats else "it was uploaded before there was this format"

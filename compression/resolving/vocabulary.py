"""Whether a target can be met by removing rows of the vocabulary, and what goes with that. No torch."""

from __future__ import annotations

from compression.anatomy.vocabulary import reachable, rows_wanted
from compression.resolving.draft import Draft


def check_vocabulary(draft: Draft) -> None:
    """Notes a fault if no number of rows meets the target."""
    specification, inspection = draft.specification, draft.inspection
    if rows_wanted(specification, inspection) is not None:
        return
    target = specification.target
    draft.refuse(
        f"/target/{target.kind}",
        f"No number of the {inspection.vocabulary:,} rows of the vocabulary that is a multiple of "
        f"options.vocabulary_multiple meets {target.value}. Reachable, as far as the tokenizer allows it: "
        f"{reachable(specification, inspection, 1)}.",
        "target_unreachable",
    )

"""From a target to a number of rows of the vocabulary. Exact, and no torch.

Sparsity is the share of rows that go. Which rows can go is known only with the tokenizer and the texts, so a
number that is found here may turn out too small when the job runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compression.specification import JobSpecification, quantity

if TYPE_CHECKING:
    from compression.anatomy.inspection import Inspection

VOCABULARY = "vocabulary"
"""The granularity."""

MULTIPLE = "vocabulary_multiple"
TARGETS = ("sparsity", "parameters", "bytes")


def rows_wanted(specification: JobSpecification, inspection: Inspection) -> int | None:
    """How many rows stay: a multiple of the option, from one multiple on; None if no number of them that is
    below all
    rows meets the target. A sparsity is rounded to more rows, parameters and bytes to the most rows that are
    not above them.
    """
    from compression.anatomy.budget import remove_count

    multiple = int(specification.options.get(MULTIPLE, 1))
    sparsity = specification.target.sparsity
    if sparsity is not None:
        wanted = inspection.vocabulary - remove_count(sparsity, inspection.vocabulary)
        wanted = -(-wanted // multiple) * multiple
    else:
        goal = _goal(specification, inspection)
        least, most = (
            figure(specification, inspection, 0),
            figure(specification, inspection, inspection.vocabulary),
        )
        each = (most - least) / inspection.vocabulary
        wanted = int((goal - least) // each) // multiple * multiple
        wanted = min(wanted, most_rows(specification, inspection))
    return wanted if multiple <= wanted < inspection.vocabulary else None


def most_rows(specification: JobSpecification, inspection: Inspection) -> int:
    """The most rows that may stay while some go."""
    multiple = int(specification.options.get(MULTIPLE, 1))
    return (inspection.vocabulary - 1) // multiple * multiple


def _goal(specification: JobSpecification, inspection: Inspection) -> float:
    kind, amount = quantity(specification.target.kind, specification.target.value)
    dense = inspection.bytes if specification.target.kind == "bytes" else inspection.parameters
    return amount * dense if kind == "ratio" else amount


def with_rows(inspection: Inspection, rows: int) -> Inspection:
    """The inspection of the model with so many rows."""
    from compression.anatomy.inspection import ITEM_SIZES

    gone = inspection.vocabulary - rows
    return replace(
        inspection,
        vocabulary=rows,
        parameters=inspection.parameters - gone * inspection.row_parameters,
        bytes=inspection.bytes - gone * inspection.row_parameters * ITEM_SIZES[inspection.dtype],
        token_macs=inspection.token_macs - gone * inspection.row_macs,
    )


def figure(specification: JobSpecification, inspection: Inspection, rows: int) -> int:
    """What the target counts of the model with so many rows: the rows themselves (of a sparsity),
    parameters, or bytes as they will be written."""
    from compression.anatomy.budget import weight_bytes

    if specification.target.kind == "sparsity":
        return rows
    left = with_rows(inspection, rows)
    if specification.target.kind == "bytes":
        return weight_bytes(left, specification.output.dtype)
    return left.parameters


def reachable(specification: JobSpecification, inspection: Inspection, fewest: int) -> str:
    """The targets that can be met when at least `fewest` rows must stay, in words."""
    multiple = int(specification.options.get(MULTIPLE, 1))
    low, high = -(-max(fewest, 1) // multiple) * multiple, most_rows(specification, inspection)
    if low > high:
        return "nothing"
    kind, total = specification.target.kind, inspection.vocabulary
    if kind == "sparsity":
        return (
            f"{-(-(total - high) * 10_000 // total) / 10_000} to {(total - low) * 10_000 // total / 10_000}"
        )
    least = figure(specification, inspection, low)
    if quantity(kind, specification.target.value)[0] == "ratio":
        dense = inspection.bytes if kind == "bytes" else inspection.parameters
        return f"ratios from {-(-least * 10_000 // dense) / 10_000} on"
    return f"{least:,} {kind} and more"

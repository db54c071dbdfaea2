"""Which class of a model a label of a dataset means. No torch.

Numbers are class numbers. Names are the model's names where they all are; where they are not, but there are
as many as the model has classes, the n-th name means class n: names of folders sorted, or in the order that
the file gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compression.suggestions import closest

Label = int | str


def class_numbers(labels: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Class number by label, of `labels` in their order, for a model whose classes have these names.

    Raises ValueError that says what does not fit.
    """
    if len(set(labels)) != len(labels):
        raise ValueError("the dataset gives one name to two labels")
    times, places = Counter(names), {name: number for number, name in enumerate(names)}
    odd = next((label for label in labels if times[label] != 1), None)
    if odd is None:
        return {label: places[label] for label in labels}
    if len(labels) != len(names):
        raise ValueError(
            f"has {len(labels):,} classes, the model {len(names):,}, and {odd[:80]!r} is no class of "
            f"it: {closest(odd, names)}"
        )
    if all(label.isdecimal() for label in labels) and [int(label) for label in labels] != list(
        range(len(labels))
    ):
        raise ValueError(
            "names its classes by numbers that are not in order once they are sorted as text: call "
            "them by the "
            "model's names, or write all numbers with as many digits (00, 01, ...)"
        )
    return {label: number for number, label in enumerate(labels)}


def check_labels(labels: Sequence[Label] | None, names: Sequence[str]) -> None:
    """Raises ValueError, a sentence that says of the dataset what does not fit a model with these classes.

    An empty sequence means that the file does not tell its labels before it is read.
    """
    words = [label for label in labels or () if isinstance(label, str)]
    if words:
        class_numbers(words, names)
    for label in labels or ():
        if isinstance(label, int) and not 0 <= label < len(names):
            raise ValueError(f"has the label {label}, but the model's classes are 0 to {len(names) - 1}")

"""Where a job's tokenizer changes: the data as the new one reads them, the dense model on the new tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from compression.errors import ArtifactVerificationFailed
from compression.evaluation.types import (
    CLASSIFICATION,
    FEATURES,
    GENERATION,
    TEXT_TO_TEXT,
    Batch,
    dense_ids,
)
from compression.export.verify import compare
from compression.loading.data import DataPlan
from compression.loading.streamed import StreamedModel
from compression.stages.data import calibration_length, evaluation_length, held_out_datasets, judging
from compression.stages.job import Data, Loaded, Pruned


def read_again(loaded: Loaded, data: Data, pruned: Pruned) -> Data:
    """The data as the pruned model's tokenizer reads it; the data itself where the vocabulary is the dense
    one."""
    if pruned.rows is None or data.plan is None:
        return data
    spec = loaded.specification
    plan = DataPlan(
        pruned.companions(loaded),
        pruned.settings(loaded),
        loaded.admission.task,
        loaded.request.datasets,
        held_out=held_out_datasets(loaded),
        specials=pruned.specials,
    )
    found = replace(data, plan=plan, calibration=None)
    evaluation, domain, calibration = spec.evaluation, spec.evaluation.domain, spec.calibration
    if evaluation.dataset is not None:
        found.evaluation = judging(
            plan, loaded, evaluation.dataset, evaluation.samples, evaluation_length(loaded)
        )
    elif calibration is not None:
        length, seed = calibration_length(loaded), calibration.seed
        found.calibration = plan.calibration(
            calibration.dataset, calibration.samples, length, seed, calibration.batch_size
        )
    if domain is not None and domain.dataset is not None:
        length = domain.sequence_length or evaluation_length(loaded)
        found.domain_evaluation = judging(plan, loaded, domain.dataset, domain.samples, length)
    return found


class KeptVocabulary:
    """The dense model as one with the smaller vocabulary (an `Evaluable`): it reads the new ids, and of its
    logits those
    of the rows that stay are given. By them a pruned model can be compared with it token by token, whatever
    the
    segmentation; a softmax over them is the dense distribution, given that the token is one that stays."""

    def __init__(self, model: StreamedModel, rows: Tensor, task: str) -> None:
        self._model = model
        self._rows = rows
        self._task = task

    def outputs(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Logits [b, s, rows]; of classifiers and headless encoders what the dense model gives."""
        for output in self._model.outputs([dense_ids(batch, self._rows) for batch in batches]):
            logits = self._task in (GENERATION, TEXT_TO_TEXT)
            yield output[..., self._rows.to(output.device)] if logits else output


def by_text(loaded: Loaded) -> bool:
    """Whether the dense model is compared text by text, each in its own tokens (one answer a text), and not
    token by token."""
    return loaded.admission.task in (FEATURES, CLASSIFICATION)


def account(before: Data, after: Data, pruned: Pruned) -> dict[str, Any] | None:
    """What the report says of the vocabulary; of the `segmentation` of the evaluation texts whether it is
    `unchanged`, and
    how many tokens a byte of text takes (`dense`, `pruned`; None where bytes are not counted)."""
    first, second = before.evaluation, after.evaluation
    if pruned.rows is None or pruned.vocabulary is None or first is None or second is None:
        return pruned.vocabulary
    again = (dense_ids(batch, pruned.rows) for batch in second.batches)
    same = all(one == other for one, other in zip_longest(_texts(first.batches), _texts(again)))
    told = {"unchanged": same, "dense": _tokens_a_byte(first), "pruned": _tokens_a_byte(second)}
    return {**pruned.vocabulary, "segmentation": told}


def _tokens_a_byte(found: Any) -> float | None:
    return found.tokens / found.text_bytes if found.text_bytes else None


def _texts(batches: Iterable[Batch]) -> Iterator[list[list[int]]]:
    """The tokens of every text (and of its target), however texts are put into batches."""
    for batch in batches:
        sides = [side for side in ("", "decoder_") if f"{side}input_ids" in batch]
        for row in range(batch["input_ids"].shape[0]):
            found = []
            for side in sides:
                ids = batch[f"{side}input_ids"][row]
                mask = batch.get(f"{side}attention_mask")
                found.append((ids if mask is None else ids[mask[row].bool()]).tolist())
            yield found


def check_rows(
    loaded: Loaded, pruned: Pruned, batches: Sequence[Batch], outputs: Sequence[Tensor]
) -> dict[str, Any]:
    """Compare a pruned model's outputs with what the dense model says of the same tokens. Raises
    ArtifactVerificationFailed.
    """
    assert pruned.rows is not None
    dense = KeptVocabulary(loaded.dense_model(), pruned.rows, loaded.admission.task)
    with torch.no_grad():
        wanted = [output.cpu() for output in dense.outputs(batches)]
    difference, tolerance, agreement = compare(list(outputs), wanted)
    if not difference <= tolerance or math.isnan(difference):
        raise ArtifactVerificationFailed(
            f"the outputs differ by {difference:.3g} from the dense model's rows that stay "
            f"(allowed: {tolerance:.3g})"
        )
    return {"max_abs_difference": difference, "tolerance": tolerance, "top1_agreement": agreement}

"""Quality of the dense, the pruned and the recovered model: on general text and, apart, on a domain's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compression.loading.data import Sequences
from compression.loading.images.plan import Images
from compression.stages import finish, prune
from compression.stages.finish import Final
from compression.stages.job import Data, Loaded, Pruned

Quality = dict[str, Any]
Judge = Callable[[Sequences | Images, Sequences | Images | None], Quality | None]
"""Judges a model on batches; the second are the same texts as the dense model reads them."""


class Qualities:
    """What `evaluation.quality.evaluate` says of each state ("dense", "pruned", "recovered"); None where
    there is nothing to judge by. Each is kept as a step of its own.
    """

    def __init__(self, loaded: Loaded, data: Data) -> None:
        self._loaded = loaded
        self._data = data
        self.general: dict[str, Quality | None] = {}
        self.domain: dict[str, Quality | None] = {}

    def dense(self) -> None:
        """Judge the model as it came."""
        model = self._loaded.dense_model
        self._note(
            "dense",
            "baseline",
            lambda batches, dense: finish.quality(self._loaded, batches, model()),
            self._data,
        )

    def pruned(self, pruned: Pruned, data: Data) -> None:
        """Judge the pruned model, before a recovery; `data` is the data as it reads them."""
        self._note(
            "pruned",
            "pruned-quality",
            lambda batches, dense: prune.judge(self._loaded, batches, pruned, dense),
            data,
        )

    def recovered(self, final: Final, pruned: Pruned, data: Data) -> None:
        """Judge the recovered model; without a recovery there is none."""
        if final.recovery is None:
            self.general["recovered"] = self.domain["recovered"] = None
            return
        self._note(
            "recovered",
            "final-quality",
            lambda batches, dense: prune.judged(self._loaded, batches, final.model, pruned, dense),
            data,
        )

    def baselines(self) -> dict[str, Quality]:
        """Quality of each baseline that was asked for ("quality", "domain"); one that is the recipe itself is
        not run again."""
        if self._data.evaluation is None:
            return {}
        loaded = self._loaded
        wanted = [name for name in loaded.specification.evaluation.baselines if name != loaded.recipe.name]
        return {name: prune.compare(loaded, self._data, name) for name in wanted}

    def to_report(self) -> dict[str, Any]:
        """As `ReportInputs` names them."""
        return {"quality": self.general, "domain_quality": self.domain}

    def announce(self) -> None:
        """Tell the observer every metric, as STATE/METRIC and STATE/domain_METRIC."""
        for start, qualities in (("", self.general), ("domain_", self.domain)):
            for name, found in qualities.items():
                for metric, value in (found["metrics"] if found else {}).items():
                    if value is not None:
                        self._loaded.observer.metric(f"{name}/{start}{metric}", float(value))

    def _note(self, state: str, step: str, judge: Judge, data: Data) -> None:
        before = self._data
        self.general[state] = self._kept(step, data.evaluation, before.evaluation, judge)
        self.domain[state] = self._kept(
            f"domain-{step}", data.domain_evaluation, before.domain_evaluation, judge
        )

    def _kept(
        self, step: str, batches: Sequences | Images | None, dense: Sequences | Images | None, judge: Judge
    ) -> Quality | None:
        if batches is None:
            return None
        store = self._loaded.store
        if not store.has(step):
            store.save(step, None, {"quality": judge(batches, dense)})
        found: Quality = store.data(step)["quality"]
        return found

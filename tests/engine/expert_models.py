"""Tiny mixtures of experts in both layouts, and the stock model with some experts never routed to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compression.anatomy import Inspection
from compression.anatomy.families import family_of
from compression.block_pruning import StructureSettings
from compression.checkpoint import Store
from compression.expert_pruning import ExpertPruner
from compression.export.model import write_model
from compression.loading.admission import Admission, admit_model, folder_sources
from compression.loading.streamed import StreamedModel
from compression.loading.weights import WeightReader
from compression.pruning import finished_files
from tests.engine.jobs import Recorder
from tests.tiny_families import tiny_family, tiny_model

LENGTHS = (9, 5, 12)


def tiny(folder: Path, case: str, layout: str, **changes: Any) -> Path:
    """A tiny model; "fused": the experts of a layer in one tensor, as transformers has them in memory."""
    if layout == "apart":
        return tiny_family(folder, case, **changes)
    model = tiny_model(case, **changes)
    model.save_pretrained(folder)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def batches() -> list[dict[str, Tensor]]:
    """Two batches of sequences of several lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for lengths in (LENGTHS, LENGTHS[::-1]):
        tokens = torch.randint(3, 131, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        found.append({"input_ids": tokens.where(mask, 0), "attention_mask": mask.long()})
    return found


def sequences() -> list[Tensor]:
    """The same without padding."""
    return [ids[mask.bool()] for batch in batches() for ids, mask in zip(*batch.values(), strict=True)]


class Cut:
    """A model whose layers keep so many experts, pruned and written by the engine."""

    def __init__(
        self, dense: Path, work: Path, criterion: str, keep: int, *, calibrated: bool = True, **settings: Any
    ) -> None:
        self.dense, self.folder = dense, work / "cut"
        self.admission: Admission = admit_model(folder_sources(dense))
        self.inspection = Inspection.from_json(self.admission.inspection)
        self.family = family_of(self.admission.architecture)
        config = self.admission.config
        groups = self.family.groups(config, WeightReader(dense).names(), ["expert"])
        chosen = StructureSettings(criterion, {"expert": keep}, **settings)
        self.store = Store(work / "steps", "key")
        self.pruner = ExpertPruner(
            lambda: StreamedModel(dense, config, self.admission.family), groups, chosen,
            batches() if calibrated else None,
            self.store, Recorder(),
        )  # fmt: skip
        self.facts = self.pruner.run()
        self.kept = self.pruner.units()["expert"]
        self.resized = self.family.resized(config, {"expert": keep})

    def write(self) -> Path:
        files = list(finished_files(self.store, self.inspection.layers))
        source = WeightReader(self.dense, files, self.pruner.gone())
        write_model(self.folder, source, self.resized, self.dense, dtype=torch.float32)
        return self.folder


def stock_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    if dtype == torch.float64:
        # The kernel that takes all experts at once knows no float64.
        model.set_experts_implementation("eager")
    return model.eval()


class Unrouted(TorchFunctionMode):
    """While it is entered, the routers of a stock model give -inf to all experts but those kept: by layer."""

    def __init__(self, model: Any, kept: Mapping[int, Iterable[int]]) -> None:
        super().__init__()
        self._gone: dict[int, Tensor] = {}
        for layer, stay in kept.items():
            weight = model.model.layers[layer].mlp.gate.weight
            gone = torch.ones(len(weight), dtype=torch.bool)
            gone[list(stay)] = False
            self._gone[id(weight)] = gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and id(args[1]) in self._gone:
            return result.masked_fill(self._gone[id(args[1])], float("-inf"))
        return result

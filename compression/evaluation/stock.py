"""Models through the stock ``transformers`` classes, as a user of the artifact loads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.anatomy.varied import PACKAGE, PREFIX
from compression.evaluation.types import (
    CLASSIFICATION,
    FEATURES,
    GENERATION,
    IMAGES,
    TEXT_TO_TEXT,
    Batch,
    model_inputs,
)
from compression.loading.transformers_import import transformers

_CLASSES = {
    GENERATION: "AutoModelForCausalLM",
    TEXT_TO_TEXT: "AutoModelForSeq2SeqLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
    FEATURES: "AutoModel",
    IMAGES: "AutoModelForImageClassification",
}


# Architectures that no automatic class gives: AutoModel makes the whole of T5 of its encoder.
_OWN = frozenset({"T5EncoderModel"})


def loader_name(task: str, architectures: Sequence[str] | None = None) -> str:
    """The ``transformers`` class that loads a model of ``task`` whose configuration names these
    architectures."""
    own = (architectures or [""])[0]
    return own if own in _OWN else _CLASSES[task]


def default_token_ids(model_type: str, roles: Sequence[str]) -> dict[str, int]:
    """The ids of special tokens (`eos_token_id`, ...) that the configuration class of a model has where a
    config.json says none."""
    config = transformers.AutoConfig.for_model(model_type)
    found = {role: getattr(config, role, None) for role in roles}
    return {role: number for role, number in found.items() if isinstance(number, int) and number >= 0}


def load(folder: Path, task: str, *, dtype: torch.dtype | None = None, device: str = "cpu") -> nn.Module:
    """Load ``folder`` in its own dtype (or ``dtype``), in evaluation mode, on ``device``.

    Weights stored in float16 are computed with in float32, as everywhere in the engine.
    Nothing is downloaded and no code of the folder is run. Raises OSError or ValueError of the loader.
    """
    return load_with_info(folder, task, dtype=dtype, device=device)[0]


def load_with_info(
    folder: Path, task: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """As ``load``, with the loader's account: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys``."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cls = _class(task, config.get("architectures"))
    stored = config.get("dtype")
    # Said to the loader, not cast afterwards: what it computes itself would be rounded to float16 by then.
    wide = torch.float32 if stored == "float16" else "auto"
    model, info = cls.from_pretrained(
        str(folder),
        dtype=dtype if dtype is not None else wide,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if dtype is None and next(model.parameters()).dtype == torch.float16:
        model = model.float()
    model = model.to(device).eval()
    return model, {name: sorted(map(str, keys)) for name, keys in info.items() if name.endswith("_keys")}


def _class(task: str, architectures: Sequence[str] | None) -> Any:
    if architectures and architectures[0].startswith(PREFIX):
        # The module that the artifact carries; a model of the user's never has such a name.
        return getattr(import_module(PACKAGE), architectures[0])
    return getattr(transformers, loader_name(task, architectures))


def answer(model: nn.Module, batch: Batch, task: str) -> Tensor:
    """The output that the task is judged by: logits, or the last hidden state of a headless encoder."""
    inputs = model_inputs(batch, next(model.parameters()).device)
    if task in (GENERATION, TEXT_TO_TEXT):
        inputs["use_cache"] = False  # type: ignore[assignment]
    output = model(**inputs)
    found: Tensor = output.last_hidden_state if task == FEATURES else output.logits
    return found

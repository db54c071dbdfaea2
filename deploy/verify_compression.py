"""Compress a tiny model through a running service with the client, and check what comes back.

SECATEUR_URL and SECATEUR_API_KEY name the service; `tiny_models.py` of the tests lies beside this file.
The last line printed is `verified: ...`; anything that is not as it must be ends the run before it.
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM

from secateur import Client
from secateur.types import Job

SPARSITY = 0.5


def text(folder: Path) -> Path:
    """A dataset of real text that every Python carries: the beginnings of modules of its library."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    documents = [path.read_text(errors="replace")[:600] for path in modules]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def zeros(folder: Path) -> tuple[int, int]:
    """Zeros and elements of the linear weights inside the blocks, as the stock loader sees them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(16)[None]).logits).all()
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def show(job: Job) -> None:
    """One line for each change of the job."""
    print(f"  {job.state} {job.stage or ''}".rstrip())


def main() -> None:
    """Upload, compress, download, look."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Client(state_folder=Path(scratch) / "state") as client:
        folder = Path(scratch)
        print("ready:", json.dumps(client.ready()["checks"]))
        model = client.upload_model(tiny_llama(folder / "model"))
        data = client.upload_dataset(text(folder))
        specification = {
            "model": model.id,
            "recipe": "wanda",
            "target": {"sparsity": SPARSITY},
            "calibration": {"dataset": data.id, "samples": 8, "sequence_length": 64},
        }
        job = client.wait(client.submit(specification).id, show, timeout=1200).raise_for_state()
        zero, total = zeros(client.download(job.artifact, folder / "artifact"))
        if abs(zero / total - SPARSITY) > 0.01:
            sys.exit(f"{zero} of {total} weights are zero, {SPARSITY:.0%} were asked for")
        if "<html" not in client.report(job.id, "html").lower():
            sys.exit("the report is no HTML page")
        print(
            f"verified: wanda, 50 %: {zero} of {total} weights zero, stock transformers loads it, "
            f"report there, {time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    main()

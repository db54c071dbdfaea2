"""Networks as graphs: latency beside multiply-accumulates, seconds to an artifact, waiting for images.

`script/bench graph_speed [--only NAME ...]`. Jobs on `../shared/models/resnet56-cifar10` and on a vision
transformer of random weights; the dense and the pruned file are timed in turns in ONNX Runtime by the job
itself (batches of 1 and 16). Needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from compression import pipeline
from compression.errors import CompressionError
from tests.bench.common import reference, table, write
from tests.bench.graph_quality import HOW
from tests.engine.jobs import Recorder, request, write_job

CALIBRATED, STEPS = 512, 40
Spec = dict[str, Any]


def transformer(path: Path) -> None:
    """A ViT of 6 layers, 384 wide, for images of 96 pixels in patches of 16, random weights, as ONNX."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=96,
        patch_size=16,
        num_labels=10,
    )
    model = ViTForImageClassification(config).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(pixel_values=image).logits
            return found

    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        Logits().eval(),
        (torch.randn(2, 3, 96, 96),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: batch}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def resnet(path: Path) -> None:
    """The trained ResNet-56."""
    path.symlink_to(reference("models", "resnet56-cifar10", "model.onnx"))


def timed(recipe: str, target: Spec, **options: Any) -> Spec:
    """A job whose result is timed."""
    return {"recipe": recipe, "target": target, "options": options}


def cases() -> dict[str, tuple[str, Spec]]:
    """By name: the network and what is asked for."""
    half = {"macs": 0.5}
    return {
        "ResNet-56, obspa, any widths": ("resnet", timed("obspa", half)),
        "ResNet-56, obspa, multiples of 8": ("resnet", timed("obspa", half, channel_multiple=8)),
        "ResNet-56, obspa, knapsack of measured times": (
            "resnet",
            timed("obspa", {"latency": 0.6}, allocation="knapsack"),
        ),
        "ResNet-56, group-l1, multiples of 8": ("resnet", timed("group-l1", half, channel_multiple=8)),
        "ViT, group-l2, any widths": ("transformer", timed("group-l2", half)),
        "ViT, group-l2, multiples of 16": ("transformer", timed("group-l2", half, channel_multiple=16)),
    }


def job(network: str, spec: Spec, *, measure: bool = True, recovery: Spec | None = None) -> Spec:
    """One job: its report, and the seconds from files to artifact."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "model").mkdir()
        {"resnet": resnet, "transformer": transformer}[network](place / "model" / "model.onnx")
        datasets = {}
        if network == "resnet":
            (place / "train.parquet").symlink_to(reference("data", "cifar10", "cifar10-train.parquet"))
            datasets = {"dst_train": "train.parquet"}
            spec = {**spec, "calibration": {"dataset": "dst_train", "samples": CALIBRATED}}
            spec["preprocessing"] = HOW
            if recovery is not None:
                spec["recovery"] = recovery
        spec["evaluation"] = {"measure": ["latency"] if measure else []}
        write_job(place, "model", datasets, spec)
        asked = request(place, place / "work")
        begun = time.monotonic()
        outcome = pipeline.run(asked, Recorder())
        seconds = time.monotonic() - begun
        found: Spec = json.loads(outcome.report.read_text())
    return {**found, "seconds": seconds}


def row(name: str, found: Spec) -> list[Any]:
    """A line of the table of latencies."""
    macs = found["cost"]["pruned"]["macs"] / found["cost"]["dense"]["macs"]
    ratios = [one["ratio"] for one in found["latency"]["cases"]]
    promised = found["latency"].get("predicted")
    return [name, macs, *ratios, *(one / macs for one in ratios), promised and promised["ratio"]]


def blamed(name: str, found: Spec) -> list[str]:
    """What the report says of layers that did not get faster."""
    slow = found["graph"]["slow"]
    if not slow:
        return []
    lines = [f"{name}: the report names"]
    for one in slow["shapes"][:4]:
        lines.append(
            f"- {one['layers']} x {one['dense']}: {1e6 * one['dense_seconds']:.0f} to "
            f"{1e6 * one['pruned_seconds']:.0f} microseconds ({one['reason']})"
        )
    return ["\n".join(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows, told = [], []
    for name, (network, spec) in cases().items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            found = job(network, spec)
        except CompressionError as error:
            told.append(f"{name}: {error}")
            continue
        rows.append(row(name, found))
        told += blamed(name, found)
        print(rows[-1], flush=True)
    seconds = []
    for recipe in ("group-l1", "obspa", "taylor"):
        took = [job("resnet", timed(recipe, {"macs": 0.5}), measure=False)["seconds"] for _ in range(3)]
        seconds.append([recipe, min(took), max(took)])
        print(seconds[-1], flush=True)
    recovery = {
        "method": "distillation",
        "dataset": "dst_train",
        "budget": {"steps": STEPS},
        "options": {"flip": True, "crop_padding": 0.125, "jitter": 0.2},
    }
    loading = job("resnet", timed("obspa", {"macs": 0.5}), measure=False, recovery=recovery)
    waited = loading["recovery"]["loading"]["waited_share"]
    head = ["job", "MACs", "latency, batch 1", "batch 16", "over MACs, batch 1", "batch 16", "promised"]
    write(
        "graph_speed",
        "Networks as graphs: speed",
        "script/bench graph_speed",
        "Ratios of the pruned to the dense file in ONNX Runtime, in turns (medians of pairs).\n\n"
        + table(head, rows),
        *told,
        "ResNet-56 with half of its multiply-accumulates, 512 calibration images, no evaluation and no "
        "timing: seconds from files to artifact, verified (limit 20), least and most of three.\n\n"
        + table(["recipe", "least", "most"], seconds),
        f"Recovery of it with every augmentation but cutout, {STEPS} steps of 64: {100 * waited:.1f}% of the "
        "time was spent waiting for images.",
    )


if __name__ == "__main__":
    main()

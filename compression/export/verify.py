"""Verification: a clean process loads the artifact with the stock loader and must get the evaluated outputs.

``python -m compression.export.verify FOLDER EXPECTED.safetensors`` prints one line of JSON: what was
checked, the largest difference, and the peak memory of loading and running the artifact. It ends with 0
also when a check fails; ``ok`` says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression.anatomy import inspect
from compression.errors import ArtifactVerificationFailed
from compression.evaluation import probe, stock
from compression.evaluation.types import CLASSIFICATION, FEATURES, IMAGES
from compression.export.files import MANIFEST, file_faults
from compression.export.gguf import file as gguf_file
from compression.export.gguf import readback
from compression.export.masks import read_masks
from compression.loading.weights import WeightReader
from compression.specification import n_m

MASKS = "secateur/masks.safetensors"
_POOLERS = ((FEATURES, "missing_keys"), (CLASSIFICATION, "unexpected_keys"), (IMAGES, "unexpected_keys"))


def run(
    folder: Path, expected: Path, *, threads: int = 1, device: str = "cpu", interpreter: bool = True
) -> dict[str, Any]:
    """Verify ``folder`` in a process of its own (``interpreter``: a new one, whose memory can be counted).
    Raises ArtifactVerificationFailed with every fault found."""
    try:
        result = probe.child(
            "compression.export.verify",
            [str(folder), str(expected), "--threads", str(threads), "--device", device],
            threads=threads,
            interpreter=interpreter,
        )
    except probe.ChildFailed as error:
        detail = error.detail.replace(str(folder), folder.name)
        raise ArtifactVerificationFailed(f"the stock loader could not load the artifact: {detail}") from None
    if result["faults"]:
        raise ArtifactVerificationFailed("; ".join(result["faults"]))
    return result


def check(folder: Path, expected: Path, device: str = "cpu") -> dict[str, Any]:
    """All checks, in this process: files, loading, outputs, zeros. ``faults`` lists what is wrong."""
    before = probe.memory_now()
    fixed = probe.read_inputs(expected)
    started = time.perf_counter()
    model, info = stock.load_with_info(folder, fixed.task, device=device)
    loaded = time.perf_counter() - started
    with torch.inference_mode():
        outputs = [stock.answer(model, batch, fixed.task).cpu() for batch in fixed.batches]
    memory = probe.memory_report(before, device)
    difference, tolerance, agreement = compare(outputs, list(fixed.outputs))
    faults = [*key_faults(info, fixed.task), *file_faults(folder), *zero_faults(folder), *gguf_faults(folder)]
    if not difference <= tolerance:
        faults.append(
            f"the reloaded model's outputs differ by {difference:.3g} from the evaluated ones "
            f"(allowed: {tolerance:.3g})"
        )
    return {
        "ok": not faults,
        "faults": faults,
        "loader": stock.loader_name(fixed.task, [type(model).__name__]),
        "dtype": str(outputs[0].dtype).removeprefix("torch."),
        "outputs": sum(output.numel() for output in outputs),
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "top1_agreement": agreement,
        "load_seconds": loaded,
        "memory": memory,
    }


def compare(found: list[Tensor], wanted: list[Tensor]) -> tuple[float, float, float]:
    """(largest absolute difference, tolerance, share of equal most likely entries).

    The tolerance is 1e-5 in float32 (growing with outputs beyond 16, where float32 itself gets coarser) and
    1% of the largest output in narrower types. A shape that differs or a number that is not finite gives
    infinity.
    """
    if len(found) != len(wanted) or any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return float("inf"), 0.0, 0.0
    difference = scale = 0.0
    agreed = total = 0
    for a, b in zip(found, wanted, strict=True):
        x, y = a.float(), b.float()
        if not bool(torch.isfinite(x).all()):
            return float("inf"), 0.0, 0.0
        difference = max(difference, float((x - y).abs().max()))
        scale = max(scale, float(y.abs().max()))
        agreed += int((x.argmax(-1) == y.argmax(-1)).sum())
        total += x[..., 0].numel()
    narrow = any(value.dtype != torch.float32 for value in found)
    tolerance = 1e-2 * max(1.0, scale) if narrow else 1e-5 * max(1.0, scale / 16)
    return difference, tolerance, agreed / max(1, total)


def key_faults(info: dict[str, Any], task: str) -> list[str]:
    """Weights that the stock loader missed or did not know. A headless encoder's pooler may be absent, and a
    classifier may hold one that its class does not have."""
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = info.get(kind, [])
        if (task, kind) in _POOLERS:
            keys = [key for key in keys if "pooler." not in key]
        if keys:
            shown = ", ".join(keys[:5])
            faults.append(f"the stock loader reports {kind.replace('_', ' ')}: {shown}")
    return faults


def zero_faults(folder: Path) -> list[str]:
    """Weights that a mask removes and that are not exactly zero, or groups with too many non-zeros."""
    if not (folder / MASKS).exists():
        return []
    manifest = folder / MANIFEST
    pattern = None
    if manifest.exists():
        pattern = n_m(json.loads(manifest.read_text(encoding="utf-8"))["structure"]["granularity"])
    reader = WeightReader(folder)
    flat = stored_inputs_first(folder, reader.names())
    faults = []
    for name, mask in read_masks(folder / MASKS):
        nonzero = reader.tensor(name) != 0
        if bool((nonzero & ~mask).any()):
            faults.append(f"{name} has weights where its mask has none")
        if pattern is not None:
            n, m = pattern
            rows = nonzero.T if name in flat else nonzero
            if int(rows.reshape(rows.shape[0], -1, m).sum(-1).max()) > n:
                faults.append(f"{name} has more than {n} non-zeros in a group of {m}")
    return faults


def gguf_faults(folder: Path) -> list[str]:
    """Keys and weights of a GGUF file in the folder that differ from config.json, the tokenizer and the
    safetensors; every weight is compared bit by bit."""
    path = folder / gguf_file.NAME
    return readback.faults(path) if path.exists() else []


def stored_inputs_first(folder: Path, names: list[str]) -> set[str]:
    """Names of the weights that are stored as [in, out]."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {site.name for site in inspect(config, names).sites if site.transposed}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m compression.export.verify")
    parser.add_argument("folder", type=Path)
    parser.add_argument("expected", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, options.threads))
    sys.stdout.write(json.dumps(check(options.folder, options.expected, options.device)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The two sides of the benchmark of structured pruning: a run of Torch-Pruning, a job of ours, each in a
process of its own, and what it left, judged alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compression.evaluation import stock
from compression.evaluation.macs import counted_macs
from tests.bench.common import ROOT
from tests.bench.peer_weights import PEERS

PEER = "torch_pruning"
SAMPLES = 128


@dataclass(frozen=True)
class Peer:
    """One run of the peer. `heads` and `neurons` are numbers that go from every layer (`everywhere`: from all
    layers together); `ratio`, where given, is the peer's one ratio for all widths."""

    importance: str
    structure: str
    heads: int = 0
    neurons: int = 0
    ratio: float | None = None
    everywhere: bool = False

    def asked(self, model: Path, rows: Path, out: Path, threads: int) -> dict[str, Any]:
        """What the peer's script is given."""
        config = json.loads((model / "config.json").read_text())
        # In each layer the peer keeps int(width * (1 - ratio)) neurons and removes ceil(ratio * heads): half
        # a unit less asked for is the number wanted, whatever the rounding of the ratio.
        slack = 0.0 if self.everywhere else 0.5
        neurons = max(0.0, self.neurons - slack) / config["intermediate_size"]
        heads = max(0.0, self.heads - slack) / config["num_attention_heads"]
        return {
            "model": str(model),
            "rows": str(rows),
            "out": str(out),
            "threads": threads,
            "importance": self.importance,
            "structure": self.structure,
            "ratio": neurons if self.ratio is None else self.ratio,
            "head_ratio": heads if self.ratio is None else self.ratio,
            "everywhere": self.everywhere,
            "cpu_seconds": None,
        }


@dataclass(frozen=True)
class Ours:
    """One job of ours."""

    recipe: str
    options: dict[str, Any]
    granularity: str
    target: dict[str, float]
    layout: str | None = None


def child(command: list[str], threads: int) -> dict[str, Any]:
    """Run one side in a process of its own: its RESULT line, or what it wrote last to standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        return {"failed": done.returncode, "errors": done.stderr[-3000:]}
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def job(asked: dict[str, Any]) -> dict[str, Any]:
    """In the process of our side: a whole job; its artifact stays under `out`."""
    from compression import pipeline
    from compression.evaluation import probe
    from compression.loading.streamed import StreamedModel
    from tests.engine.jobs import Recorder, request, write_job

    ours, out, model = Ours(**asked["run"]), Path(asked["out"]), Path(asked["model"])
    length = asked["length"]
    specification: dict[str, Any] = {
        "recipe": ours.recipe,
        "target": ours.target,
        "structure": {"granularity": ours.granularity},
        "options": ours.options,
        "calibration": {"dataset": "dst_train", "samples": SAMPLES, "sequence_length": length, "seed": 0},
        "evaluation": {"dataset": "dst_judge", "samples": 8, "sequence_length": length, "measure": []},
        "output": {"layout": ours.layout} if ours.layout else {},
    }
    out.mkdir()
    (out / "model").symlink_to(model)
    for name in ("train", "judge"):
        (out / f"{name}.jsonl").symlink_to(asked[name])
    write_job(out, "model", {"dst_train": "train.jsonl", "dst_judge": "judge.jsonl"}, specification)
    StreamedModel(model)  # the model's classes are imported before the clock starts, as for the peer
    outcome = pipeline.run(request(out, out / "work"), Recorder())
    seconds = json.loads(outcome.report.read_text())["reproducibility"]["seconds"]
    return {
        "seconds": sum(seconds[name] for name in ("load", "inspect", "calibrate", "prune", "export")),
        "peak": probe.memory_peak() / 1e6,
        "artifact": str(outcome.artifact),
    }


def resized(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A stock model whose parameters are replaced by the peer's, whatever their shapes: head sizes stay, so
    that stock attentions find their number of heads in them."""
    for path, module in model.named_modules():
        for name, old in list(module.named_parameters(recurse=False)):
            new = tensors.get(f"{path}.{name}")
            if new is None:
                continue
            setattr(module, name, nn.Parameter(new))
            if name == "weight" and isinstance(module, nn.Linear):
                module.out_features, module.in_features = new.shape
            if name == "weight" and isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(new.shape)
            if name == "weight" and isinstance(module, nn.Embedding):
                module.embedding_dim = new.shape[1]
            assert old.dim() == new.dim()
    if getattr(model.config, "tie_word_embeddings", False) and hasattr(model, "lm_head"):
        model.lm_head.weight = model.model.embed_tokens.weight
        model.lm_head.in_features = model.lm_head.weight.shape[1]
    return model


class Part:
    """One model with its rows; runs either side and judges what it left."""

    def __init__(
        self, model: Path, rows: dict[str, Tensor], texts: tuple[Path, Path], length: int, threads: int
    ) -> None:
        self.model, self.texts, self.length, self.threads = model, texts, length, threads
        self._scratch = tempfile.TemporaryDirectory()
        self.rows = Path(self._scratch.name) / "rows.safetensors"
        save_file({name: value.contiguous() for name, value in rows.items()}, self.rows)
        self._sample = {name: value[:1] for name, value in rows.items() if name != "labels"}
        self._sample = {name: value[:, :length] for name, value in self._sample.items()}
        self.task = "text-classification" if "labels" in rows else "text-generation"
        self.dense = stock.load(model, self.task)

    def __call__(
        self, run: Peer | Ours, judge: Callable[[nn.Module], float], cpu_seconds: int | None = None
    ) -> dict[str, Any]:
        """Quality, costs and sizes; what the peer said where it ended in an error."""
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            result = self._peer(run, out, cpu_seconds) if isinstance(run, Peer) else self._ours(run, out)
            if "failed" in result:
                return result
            if isinstance(run, Peer):
                pruned = resized(stock.load(self.model, self.task), load_file(out))
            else:
                pruned = stock.load(Path(result.pop("artifact")), self.task)
            return {**result, "quality": judge(pruned.eval()), **self.sizes(pruned)}

    def _peer(self, run: Peer, out: Path, cpu_seconds: int | None) -> dict[str, Any]:
        asked = run.asked(self.model, self.rows, out, self.threads) | {"cpu_seconds": cpu_seconds}
        # -P: the script has the name of the module that it imports.
        script = [str(PEERS / PEER / "bin" / "python"), "-P", f"tests/bench/peers/{PEER}.py"]
        return child([*script, json.dumps(asked)], self.threads)

    def _ours(self, run: Ours, out: Path) -> dict[str, Any]:
        asked = {
            "run": asdict(run),
            "model": str(self.model),
            "out": str(out),
            "train": str(self.texts[0]),
            "judge": str(self.texts[1]),
            "length": self.length,
        }
        command = [sys.executable, "-m", "tests.bench.peer_sides", json.dumps(asked)]
        result = child(command, self.threads)
        if "failed" in result:
            sys.exit(f"{run.recipe} failed:\n{result['errors']}")
        return result

    def sizes(self, model: nn.Module) -> dict[str, float]:
        """Shares of parameters and of the multiply-accumulates that torch counts on one row."""

        def count(one: nn.Module) -> tuple[int, int]:
            one.config._attn_implementation = "eager"
            return sum(value.numel() for value in one.parameters()), counted_macs(
                one, self._sample, self.task
            )

        (parameters, macs), (all_parameters, all_macs) = count(model), count(self.dense)
        return {"parameters": parameters / all_parameters, "macs": macs / all_macs}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print("RESULT " + json.dumps(job(json.loads(sys.argv[1]))))

"""Memory and time of pruning a model larger than memory: Wanda on random Llama-type models up to 3 GB.

`script/bench streaming [--gigabytes 0.75 1.5 3]`. Each size is one process; its peak resident memory is
what the system counted. The floor of the time is the calibration's forward passes plus reading and writing
every weight once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.common import ROOT, table, write

HIDDEN, FFN, HEADS, GROUPS, VOCABULARY = 2048, 5632, 16, 4, 8192
SEQUENCES, LENGTH = 64, 256


def build(folder: Path, gigabytes: float) -> int:
    """A random Llama in bfloat16, one shard a layer, written without ever being whole in memory; gives its
    bytes."""
    import torch
    from safetensors.torch import save_file

    head = HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (GROUPS * head, HIDDEN),
        "self_attn.v_proj": (GROUPS * head, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }
    layer_bytes = 2 * sum(rows * columns for rows, columns in shapes.values())
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    def values(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": values(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        shard(f"model-{layer + 1:05d}-of-{layers + 1:05d}.safetensors", tensors)
    outer = {
        "model.embed_tokens.weight": values(VOCABULARY, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    shard(f"model-{layers + 1:05d}-of-{layers + 1:05d}.safetensors", outer)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    facts = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(facts))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total


class Quiet:
    """Nobody listens."""

    def progress(self, done: int, total: int) -> None: ...

    def log(self, message: str) -> None: ...


class Watch:
    """Looks at this process ten times a second: the most memory of its own (`anonymous`) and the most pages
    of files that it maps (`mapped`: libraries, of which the system may map more than was asked for), MB."""

    def __init__(self) -> None:
        self.anonymous = self.mapped = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *told: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            own, mapped = (int(found[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))
            self.anonymous, self.mapped = max(self.anonymous, own), max(self.mapped, mapped)


def prune(folder: Path, work: Path) -> dict[str, Any]:
    """One pruning run: seconds, and the peak resident memory of this process and of its parts."""
    import torch

    from compression.anatomy import inspect
    from compression.checkpoint import Store
    from compression.cutting import PruneSettings
    from compression.device import prepare_device
    from compression.granularity.base import parse_granularity
    from compression.loading.streamed import StreamedModel, read_config
    from compression.loading.weights import WeightReader
    from compression.pruning import WeightPruner

    prepare_device("cpu", os.cpu_count() or 1)
    idle = peak()
    sites = list(inspect(read_config(folder), WeightReader(folder).names()).sites)
    total = sum(site.size for site in sites)
    settings = PruneSettings("wanda", parse_granularity("unstructured"), total // 2)
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"input_ids": torch.randint(VOCABULARY, (4, LENGTH), generator=generator)}
        for _ in range(SEQUENCES // 4)
    ]
    begun = time.monotonic()
    store = Store(work, "k")
    with Watch() as watch:
        WeightPruner(lambda: StreamedModel(folder), sites, settings, batches, store, Quiet()).run()
    parts = {"anonymous": watch.anonymous, "mapped": watch.mapped}
    return {"seconds": time.monotonic() - begun, "idle": idle, "peak": peak(), **parts}


def floor(folder: Path, work: Path) -> dict[str, Any]:
    """Seconds of what cannot be avoided: both passes over the calibration data, reading and writing every
    weight."""
    import torch
    from safetensors.torch import save_file

    from compression.device import prepare_device
    from compression.loading.streamed import StreamedModel

    prepare_device("cpu", os.cpu_count() or 1)
    work.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"input_ids": torch.randint(VOCABULARY, (4, LENGTH), generator=generator)}
        for _ in range(SEQUENCES // 4)
    ]
    begun = time.monotonic()
    model = StreamedModel(folder)
    states = model.start(batches)
    for index in range(model.layers):
        block = model.load_block(index)
        for number in range(len(states)):
            model.run_batch(block, states, number)
        model.run_block(block, states)
        path = work / f"{index}.safetensors"
        save_file({name: model.reader.tensor(stored) for name, stored in block.names.items()}, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return {"seconds": time.monotonic() - begun, "peak": peak()}


def peak() -> float:
    """Highest resident memory of this process so far, MB."""
    from compression.evaluation import probe

    return probe.memory_peak() / 1e6


def child(what: str, folder: Path, work: Path) -> dict[str, Any]:
    """Run one of the measurements in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.streaming", "--child", what, str(folder), str(work)]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.75, 1.5, 3.0])
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "MODEL", "WORK"))
    arguments = parser.parse_args()
    if arguments.child:
        what, folder, work = arguments.child
        print(json.dumps({"prune": prune, "floor": floor}[what](Path(folder), Path(work))))
        return
    rows = []
    for gigabytes in arguments.gigabytes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
            folder = Path(scratch) / "model"
            size = build(folder, gigabytes)
            pruned = child("prune", folder, Path(scratch) / "work")
            least = child("floor", folder, Path(scratch) / "floor")
            rows.append(
                [
                    f"{size / 1e9:.2f}",
                    pruned["idle"],
                    pruned["peak"],
                    pruned["anonymous"],
                    pruned["mapped"],
                    pruned["seconds"],
                    least["seconds"],
                    pruned["seconds"] / least["seconds"],
                ]
            )
            print(rows[-1], flush=True)
    head = [
        "weights, GB",
        "peak before work, MB",
        "peak, MB (limit 1200)",
        "of its own",
        "of mapped files",
        "seconds",
        "floor, seconds",
        "ratio (limit 1.5)",
    ]
    text = f"Wanda 50%, {SEQUENCES} sequences of {LENGTH} tokens, bfloat16, sequential.\n\n" + table(
        head, rows
    )
    write("streaming", "Pruning models larger than memory", "script/bench streaming", text)


if __name__ == "__main__":
    main()

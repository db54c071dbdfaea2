"""Runs in the peers' environment: one method of llm-compressor on given token rows; time and memory."""

import json
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def highest() -> float:
    """The most resident MB of this program: ru_maxrss would count what started it."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1000


def main() -> None:
    method, pattern, folder, rows_file, out, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    rows = load_file(rows_file)["rows"].tolist()
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    sparsity, mask = (0.5, pattern) if ":" in pattern else (float(pattern.rstrip("%")) / 100, "0:0")
    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    recipe = kind(sparsity=sparsity, mask_structure=mask, targets=["re:.*proj$"])
    oneshot(
        model=model,
        dataset=dataset,
        recipe=[recipe],
        processor=AutoTokenizer.from_pretrained(folder),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
    )
    peak = highest()
    state = {name: value for name, value in model.state_dict().items() if name.endswith("proj.weight")}
    save_file({name: value.contiguous() for name, value in state.items()}, out)
    seconds = time.monotonic() - begun
    print("RESULT " + json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()

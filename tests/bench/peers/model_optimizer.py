"""Runs in ModelOpt's environment: its 2:4 SparseGPT on given token rows; time and memory."""

import json
import sys
import time

import modelopt.torch.sparsity as mts
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def highest() -> float:
    """The most resident MB of this program: ru_maxrss would count what started it."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1000


def main() -> None:
    method, pattern, folder, rows_file, out, threads = sys.argv[1:]
    if (method, pattern) != ("sparsegpt", "2:4"):
        sys.exit("ModelOpt prunes 2:4 only")
    torch.set_num_threads(int(threads))
    rows = load_file(rows_file)["rows"]
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    batches = [{"input_ids": part} for part in rows.split(8)]
    # It calibrates on `calib_size` rows, 256 by default; its default device is a GPU.
    config = {
        "data_loader": batches,
        "collect_func": lambda batch: batch,
        "device": "cpu",
        "calib_size": len(rows),
    }
    model = mts.export(mts.sparsify(model, mode="sparsegpt", config=config))
    peak = highest()
    state = {name: value for name, value in model.state_dict().items() if name.endswith("proj.weight")}
    save_file({name: value.contiguous() for name, value in state.items()}, out)
    seconds = time.monotonic() - begun
    print("RESULT " + json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()

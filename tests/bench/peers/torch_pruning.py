"""Runs in the peer's environment: one importance of Torch-Pruning on a BERT or Llama model; its tensors, time
and memory. As in the project's examples for transformers: heads by `num_heads` and `prune_num_heads`, whole
(`prune_head_dims=False`), Taylor scores from gradients of the loss over all rows.

One argument, JSON: {"model", "rows", "out", "threads", "importance": "magnitude" | "taylor", "structure":
"neurons" | "heads+neurons" | "heads+neurons+hidden", "ratio", "head_ratio", "everywhere": whether layers
compete, "cpu_seconds": after which it is stopped, or null}.
"""

import faulthandler
import json
import resource
import signal
import sys
import time

import torch
import torch_pruning as tp
import transformers
from safetensors.torch import load_file, save_file

BATCH = 8
EXAMPLE = 7
"""Tokens of the example that the graph is traced with: a few, as in the project's examples, and a number that
is no width of a model."""


def highest() -> float:
    """The most resident MB of this program: ru_maxrss would count what started it."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1000


def attentions(model: torch.nn.Module) -> list[tuple[torch.nn.Module, list[torch.nn.Module]]]:
    """Every attention with its query, key and value."""
    names = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
    found = []
    for module in model.modules():
        for three in names:
            if all(hasattr(module, name) for name in three):
                found.append((module, [getattr(module, name) for name in three]))
    return found


def kept_dense(model: torch.nn.Module, structure: str) -> list[torch.nn.Module]:
    """What must keep its outputs: heads of classifiers and of vocabularies; the residual stream with all that
    writes to it, and attention, as far as they are no part of the structure."""
    layers = [
        module for name, module in model.named_modules() if name in ("classifier", "lm_head", "bert.pooler")
    ]
    if "hidden" not in structure:
        layers += [
            module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Embedding)
            or name.endswith(("output.dense", "o_proj", "down_proj"))
        ]
    if "heads" not in structure:
        layers += [linear for _, three in attentions(model) for linear in three]
    return layers


def heads(model: torch.nn.Module) -> dict[torch.nn.Module, int]:
    """The number of heads of every query, key and value."""
    config = model.config
    shared = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return {
        linear: config.num_attention_heads if place == 0 else shared
        for _, three in attentions(model)
        for place, linear in enumerate(three)
    }


def backward(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> None:
    """Gradients of the loss, summed over all rows."""
    labels = rows.get("labels", rows["input_ids"])
    model.zero_grad()
    for at in range(0, len(labels), BATCH):
        batch = {name: value[at : at + BATCH] for name, value in rows.items() if name != "labels"}
        model(**batch, labels=labels[at : at + BATCH]).loss.backward()


def prune(model: torch.nn.Module, rows: dict[str, torch.Tensor], asked: dict[str, object]) -> None:
    """Cut the model in place."""
    scores = {
        "taylor": tp.importance.GroupTaylorImportance,
        "magnitude": tp.importance.GroupMagnitudeImportance,
    }
    pruner = tp.pruner.BasePruner(
        model,
        {name: value[:1, :EXAMPLE] for name, value in rows.items() if name != "labels"},
        importance=scores[asked["importance"]](),
        global_pruning=asked["everywhere"],
        pruning_ratio=asked["ratio"],
        ignored_layers=kept_dense(model, asked["structure"]),
        num_heads=heads(model),
        prune_head_dims=False,
        prune_num_heads=True,
        head_pruning_ratio=asked["head_ratio"],
        output_transform=lambda output: output.logits.sum(),
    )
    if asked["importance"] == "taylor":
        backward(model, rows)
    for group in pruner.step(interactive=True):
        group.prune()
    for attention, three in attentions(model):
        if hasattr(attention, "all_head_size"):
            attention.num_attention_heads = pruner.num_heads[three[0]]
            attention.all_head_size = three[0].out_features


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    if asked["cpu_seconds"]:
        # Says where it was when the limit came.
        faulthandler.register(signal.SIGXCPU, chain=True)
        resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu_seconds"], asked["cpu_seconds"] + 5))
    rows = load_file(asked["rows"])
    with open(f"{asked['model']}/config.json", encoding="utf-8") as file:
        kind = getattr(transformers, json.load(file)["architectures"][0])
    begun = time.monotonic()
    model = kind.from_pretrained(asked["model"]).eval()
    # Joining keys to an empty cache would be read as one more joining of channels.
    model.config.use_cache = False
    prune(model, rows, asked)
    with torch.inference_mode():
        model(**{name: value[:1] for name, value in rows.items() if name != "labels"})
    tied = getattr(model.config, "tie_word_embeddings", False) and hasattr(model, "lm_head")
    state = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(state, asked["out"])
    print("RESULT " + json.dumps({"seconds": time.monotonic() - begun, "peak": highest()}))


if __name__ == "__main__":
    main()

"""Runs in the peer's environment: one importance of Torch-Pruning on a convolutional network, and what is
left of its tensors. As in the project's examples for CIFAR: a global ranking of groups, in small steps until
the multiply-accumulates are down.

One argument, JSON: {"graph": nodes in order, each {"operator", "inputs", "outputs", "attributes"},
"tensors": a safetensors file, "images" and "labels" in another, "out", "input", "output", "importance":
"group-norm" | "taylor" | "random", "macs": share that stays, "seed", "threads", "cpu_seconds"}.
"""

import json
import resource
import sys
import time

import torch
import torch_pruning as tp
from safetensors.torch import load_file, save_file
from torch import nn

STEPS = 100


class Network(nn.Module):
    """Runs the nodes in order; layers with weights are modules that the peer can cut."""

    def __init__(self, nodes, tensors, source, result):
        super().__init__()
        self.nodes, self.source, self.result = nodes, source, result
        self.layers, self.names = nn.ModuleDict(), {}
        for place, node in enumerate(nodes):
            layer, names = self.layer(node, tensors)
            if layer is not None:
                self.layers[str(place)] = layer
                self.names[str(place)] = names

    def layer(self, node, tensors):
        inputs, told = node["inputs"], node["attributes"]
        if node["operator"] == "Conv":
            weight = tensors[inputs[1]]
            pads = told.get("pads", [0, 0, 0, 0])
            layer = nn.Conv2d(
                weight.shape[1], weight.shape[0], tuple(weight.shape[2:]),
                stride=tuple(told.get("strides", [1, 1])), padding=tuple(pads[:2]), bias=len(inputs) > 2,
            )  # fmt: skip
            names = dict(zip(("weight", "bias"), inputs[1:], strict=False))
        elif node["operator"] == "BatchNormalization":
            layer = nn.BatchNorm2d(len(tensors[inputs[1]]), eps=told["epsilon"])
            names = dict(zip(("weight", "bias", "running_mean", "running_var"), inputs[1:], strict=True))
        elif node["operator"] == "Gemm":
            weight = tensors[inputs[1]]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            names = dict(zip(("weight", "bias"), inputs[1:], strict=True))
        else:
            return None, None
        layer.load_state_dict({key: tensors[name] for key, name in names.items()}, strict=False)
        return layer, names

    def forward(self, images):
        values = {self.source: images}
        for place, node in enumerate(self.nodes):
            given = [values[name] for name in node["inputs"] if name in values]
            if str(place) in self.layers:
                found = self.layers[str(place)](given[0])
            elif node["operator"] == "Relu":
                found = torch.relu(given[0])
            elif node["operator"] == "Add":
                found = given[0] + given[1]
            else:  # the mean over height and width
                found = given[0].mean((2, 3))
            values[node["outputs"][0]] = found
        return values[self.result]

    def tensors(self):
        state = self.state_dict()
        return {
            name: state[f"layers.{place}.{key}"].contiguous()
            for place, names in self.names.items()
            for key, name in names.items()
        }


def importance_of(name):
    if name == "group-norm":
        return tp.importance.GroupMagnitudeImportance(p=2)
    if name == "taylor":
        return tp.importance.GroupTaylorImportance()
    return tp.importance.RandomImportance()


def main():
    asked = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu_seconds"],) * 2)
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"])
    network = Network(asked["graph"], load_file(asked["tensors"]), asked["input"], asked["output"]).eval()
    data = load_file(asked["images"])
    example = data["images"][:1]
    begun = time.monotonic()
    dense, _ = tp.utils.count_ops_and_params(network, example)
    last = [layer for layer in network.layers.values() if isinstance(layer, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        network, example, importance=importance_of(asked["importance"]), global_pruning=True,
        pruning_ratio=1.0, iterative_steps=STEPS, ignored_layers=last,
    )  # fmt: skip
    macs = dense
    for _ in range(STEPS):
        if asked["importance"] == "taylor":
            network.zero_grad()
            for at in range(0, len(data["labels"]), 64):
                part = slice(at, at + 64)
                loss = nn.functional.cross_entropy(network(data["images"][part]), data["labels"][part])
                loss.backward()
        pruner.step()
        macs, _ = tp.utils.count_ops_and_params(network, example)
        if macs <= asked["macs"] * dense:
            break
    seconds = time.monotonic() - begun
    save_file(network.tensors(), asked["out"])
    print(json.dumps({"seconds": seconds, "macs": macs / dense}))


if __name__ == "__main__":
    main()

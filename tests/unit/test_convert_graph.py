"""`secateur convert` of networks: modules and torch.export programs become ONNX with the same outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from compression.loading import convert_graph
from compression.loading.admission import admit_model, folder_sources
from compression.loading.convert_graph import Input, NotConvertible, fold, make_plain

NETWORK = """
import torch
from torch import nn
from torch.nn.utils import prune

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, image):
        return self.fc(torch.relu(self.norm(self.conv(image))).mean((2, 3)))

def network():
    torch.manual_seed(0)
    return Network().eval()

def pruned():
    made = network()
    prune.l1_unstructured(made.conv, "weight", 0.5)
    return made

not_a_module = dict
def broken():
    raise RuntimeError("no such file: /home/me/secret\\nsecond line")
"""
SAVE = """
import sys, torch, my_networks
made = my_networks.pruned()
torch.save(made.state_dict(), "weights.pt")
torch.manual_seed(1)
image = torch.randn(5, 3, 8, 8)
torch.save({"image": image, "logits": made(image).detach()}, "wanted.pt")
if sys.argv[1:]:
    batch = torch.export.Dim("batch")
    program = torch.export.export(my_networks.network(), (image,), dynamic_shapes=({0: batch},))
    torch.export.save(program, "net.pt2")
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )


def convert(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "secateur", "convert", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_networks.py").write_text(NETWORK)
    return tmp_path


def assert_clean(file: Path, folder: Path) -> None:
    """No traces of the machine that made it, and what the service takes in."""
    data = file.read_bytes()
    for word in (str(folder), os.path.expanduser("~"), "my_networks", "site-packages", "Traceback", 'File "'):
        assert word.encode() not in data
    made = onnx.load_from_string(data)
    assert not made.metadata_props
    assert not any(each.metadata_props or each.doc_string for each in (made.graph, *made.graph.node))
    assert not made.functions
    inspection = admit_model({file.name: folder_sources(file.parent)[file.name]}).inspection
    assert inspection["dynamic_batch"]
    assert inspection["unknown_operators"] == []


@pytest.mark.timeout(300)
def test_a_pruned_module_becomes_a_graph(folder: Path) -> None:
    assert run(folder, "-c", SAVE).returncode == 0
    done = convert(
        folder,
        "my_networks:network",
        "--weights",
        "weights.pt",
        "--input",
        "image:1x3x8x8",
        "--out",
        "net.onnx",
    )
    assert done.returncode == 0, done.stderr
    assert "free batch" in done.stdout
    assert sorted(path.name for path in folder.glob("*.onnx*")) == ["net.onnx"]
    assert not list(folder.glob(".*converting"))
    wanted = torch.load(folder / "wanted.pt", weights_only=True)
    session = ReferenceEvaluator(onnx.load(str(folder / "net.onnx")))
    assert session.input_names == ["image"]
    [given] = session.run(None, {"image": wanted["image"].numpy()})
    assert np.abs(given - wanted["logits"].numpy()).max() < 1e-5
    zeros = sum(
        int((onnx.numpy_helper.to_array(each) == 0).sum())
        for each in onnx.load(str(folder / "net.onnx")).graph.initializer
    )
    assert zeros >= 81
    assert_clean(folder / "net.onnx", folder)
    assert "is there already" in convert(folder, "my_networks:network", "net.onnx").stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_program_becomes_a_graph_on_the_owner_s_machine(folder: Path) -> None:
    saved = run(folder, "-c", SAVE, "program")
    assert saved.returncode == 0, saved.stderr
    done = convert(folder, "net.pt2", "--out", "net.onnx")
    assert done.returncode == 0, done.stderr
    assert "runs code that it holds" in done.stderr
    assert_clean(folder / "net.onnx", folder)


@pytest.mark.parametrize(
    ("source", "inputs", "words"),
    [
        ("my_networks:network", [], "say what the network takes"),
        ("my_networks:not_a_module", ["x:1x3"], "gives a dict, not a torch.nn.Module"),
        ("my_networks:nothing", ["x:1x3"], "does not give a module"),
        ("my_networks:broken", ["x:1x3"], "RuntimeError: no such file"),
        ("no_such_module_here:x", ["x:1x3"], "does not give a module: ModuleNotFoundError"),
        ("missing.pt2", [], "there is no file"),
        ("missing.pt2", ["x:1x3"], "leave --weights and --input out"),
    ],
)
def test_sources_that_do_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, inputs: list[str], words: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    given = [Input.parse(text) for text in inputs]
    with pytest.raises(NotConvertible, match=words) as caught:
        convert_graph.convert(source, folder / "x.onnx", None, given)
    assert "second line" not in str(caught.value)


def test_weights_that_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    save_file({"conv.weight": torch.ones(6, 3, 3, 3)}, str(folder / "part.safetensors"))
    with pytest.raises(NotConvertible, match=r"part.safetensors does not fit .*fc.weight"):
        convert_graph.build("my_networks:network", folder / "part.safetensors")
    with pytest.raises(NotConvertible, match="there is no file"):
        convert_graph.build("my_networks:network", folder / "none.pt")
    (folder / "bad.pt").write_bytes(b"garbage")
    with pytest.raises(NotConvertible, match="not a file of plain tensors"):
        convert_graph.build("my_networks:network", folder / "bad.pt")


def test_leftovers_of_pruning_are_folded() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    prune.random_unstructured(layers[0], "weight", 0.5)
    prune.random_unstructured(layers[0], "bias", 0.4)
    prune.ln_structured(layers[2], "weight", 0.5, n=2, dim=0)
    wanted = layers(torch.ones(2, 4))
    state = {f"module.{name}": value for name, value in layers.state_dict().items()}
    assert any(name.endswith("_mask") for name in state)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    plain.load_state_dict(fold(state))
    assert torch.equal(plain(torch.ones(2, 4)), wanted)
    make_plain(layers)
    assert layers.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(layers(torch.ones(2, 4)), wanted)
    with pytest.raises(NotConvertible, match=r"weight_orig, but no .*weight_mask"):
        fold({"0.weight_orig": torch.ones(1)})
    assert fold({"attention_mask": torch.ones(1)}).keys() == {"attention_mask"}


class Halved(nn.Module):
    """A weight that is computed from a stored one."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (weight.abs() > 0.2)


def test_weights_that_are_computed_become_plain() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    parametrize.register_parametrization(layers[0], "weight", Halved())
    prune.random_unstructured(layers[1], "weight", 0.5)
    wanted = layers(torch.ones(2, 4))
    make_plain(layers)
    assert set(layers.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(layers(torch.ones(2, 4)), wanted)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("image:1x3x32x32", Input("image", (1, 3, 32, 32), "float32")),
        ("tokens:4x128:int64", Input("tokens", (4, 128), "int64")),
        ("x:7", Input("x", (7,), "float32")),
    ],
)
def test_inputs(text: str, found: Input) -> None:
    assert Input.parse(text) == found
    assert found.example(3).shape == (3, *found.shape[1:])


@pytest.mark.parametrize(
    "text", ["", "image", "1x3", "x:", "x:1x", "x:ax3", "x:1x3:float8", "x y:1", "x:-1x3"]
)
def test_inputs_that_say_nothing(text: str) -> None:
    with pytest.raises(NotConvertible, match="write NAME:1x3x32x32"):
        Input.parse(text)


def test_the_command_names_what_is_missing(folder: Path) -> None:
    assert "Name one destination" in convert(folder, "my_networks:network").stderr
    assert "must end with .onnx" in convert(folder, "my_networks:network", "out.bin").stderr
    assert "belongs to MODULE:FACTORY" in convert(folder, ".", "out", "--input", "x:1").stderr
    bare = folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = convert(folder, "my_networks:network", "net.onnx", "--python", str(bare / "bin" / "python"))
    assert done.returncode == 1
    assert "pip install torch onnx onnxscript" in done.stderr
    assert not list(folder.glob("*.onnx"))

"""Why `.pt2` files are refused (docs/decisions/0031): reading one with torch runs what strangers wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compression.errors import FileRefused, PickleRefused
from compression.loading.admission import BytesSource, admit_model
from tests.security.hostile import refused

SCRIPT = """
import sys, warnings, zipfile
from pathlib import Path
warnings.simplefilter("ignore")
import torch

class Network(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0] * 4)

shapes = ({0: torch.export.Dim("batch")},)
torch.export.save(torch.export.export(Network(), (torch.ones(2, 4),), dynamic_shapes=shapes), "good.pt2")
with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("evil.pt2", "w") as copy:
    for name in good.namelist():
        data = good.read(name)
        if name.endswith("models/model.json"):
            evil = b'''"expr_str": "__import__('pathlib').Path('ran').touch() or '''
            changed = data.replace(b'"expr_str": "', evil, 1)
            assert changed != data
            data = changed
        copy.writestr(name, data)
assert not Path("ran").exists()
torch.export.load("evil.pt2")
print("ran" if Path("ran").exists() else "did not run")
"""


def test_reading_a_program_runs_code_in_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran", "torch reads programs safely now: look at decision 0031 again"
    data = (tmp_path / "good.pt2").read_bytes()
    for name, kind in (("model.pt2", FileRefused), ("model.onnx", PickleRefused)):
        refused(kind, lambda name=name: admit_model({name: BytesSource(data)}), "secateur convert")

"""A network in ONNX through the service: up, planned, cut by a real worker, down, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from secateur import Client
from tests.onnx_wire import small_network
from tests.pictures import write_parquet


def test_a_network_in_onnx(client: Client, tmp_path: Path) -> None:
    small_network(tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    data = write_parquet(tmp_path / "pictures.parquet", images, [number % 4 for number in range(20)])
    specification = {
        "model": client.upload_model(tmp_path / "model.onnx", "network").id,
        "recipe": "group-l1",
        "target": {"macs": 0.6},
        "evaluation": {"dataset": client.upload_dataset(data).id, "measure": ["latency"]},
        "preprocessing": {"image_mean": [0.5], "image_std": [0.25]},
    }
    plan = client.plan(specification)
    assert (plan["valid"], plan["pruned"]) == (True, None), plan
    job = client.wait(client.submit(specification).id, timeout=240).raise_for_state()
    report = client.report(job.id)
    assert report["target"]["ratio"] <= 0.6
    assert report["data"]["evaluation"]["images"] == 20
    assert report["verification"]["ok"]
    client.download(job.artifact, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "secateur" / "manifest.json").read_text())
    assert manifest["format"] == "onnx"
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"image": np.zeros((2, 3, 8, 8), np.float32)})[0].shape == (2, 4)
    again = client.upload_model(tmp_path / "out" / "model.onnx", "smaller")
    assert again.inspection["parameters"] < 532
    hard = client.submit({**specification, "target": {"macs": 0.0001}})
    failed = client.wait(hard.id, timeout=240)
    assert (failed.state, failed.error and failed.error.code) == ("failed", "target_unreachable")
    assert "the output 'logits'" in str(failed.error)

"""A model of images through the service: pictures over HTTP, calibration, recovery, report, artifact."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from secateur import Client
from tests.acceptance.service import Running
from tests.pictures import NAMES, learnt_model, pictures, write_npz, write_parquet


def test_a_vision_transformer_pruned_with_pictures(service: Running, client: Client, tmp_path: Path) -> None:
    images, labels = pictures(48)
    data = write_npz(tmp_path / "pictures.npz", images, labels)
    table = write_parquet(tmp_path / "pictures.parquet", *pictures(24, seed=5), names=NAMES)
    model = client.upload_model(learnt_model(tmp_path / "model", "ViTForImageClassification"))
    with httpx2.Client(base_url=f"{service.url}/v1", timeout=60) as http:
        answer = http.post("/datasets", data={"name": "p"}, files=[("files", (data.name, data.read_bytes()))])
        assert answer.status_code == 201, answer.text
        dataset = answer.json()
        assert (dataset["kind"], dataset["facts"]["labels"]) == ("image", [0, 1, 2])
        specification = {
            "model": model.id,
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": dataset["id"], "samples": 16},
            "recovery": {"method": "lora", "budget": {"steps": 3}},
            "evaluation": {"dataset": client.upload_dataset(table).id, "measure": []},
        }
        plan = http.post("/plans", json=specification).json()
        assert plan["valid"] is True, plan
        wrong = {**specification, "calibration": {"dataset": dataset["id"], "sequence_length": 32}}
        told = http.post("/jobs", json=wrong)
        assert (told.status_code, told.json()["errors"][0]["pointer"]) == (
            422,
            "/calibration/sequence_length",
        )
    job = client.wait(client.submit(specification).id, timeout=240).raise_for_state()
    report = client.report(job.id)
    assert report["data"]["evaluation"]["images"] == 24
    assert report["data"]["calibration"]["images"] == 16
    assert report["quality"]["dense"]["accuracy"] >= 0.9
    assert report["quality"]["final"] == "recovered"
    assert [row["label"] for row in report["damage"]["classes"]["classes"]] == list(NAMES)
    client.download(job.artifact, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 24, "width": 24}

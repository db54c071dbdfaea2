"""ONNX models over HTTP: taken in and described, planned, asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from secateur import Client, errors
from tests.api.gateway import Gateway, send_upload
from tests.engine.graphs.exports import stored
from tests.onnx_wire import graph, model, small_network, tensor


def create(client: httpx2.Client, *files: tuple[str, bytes]) -> httpx2.Response:
    parts = [("files", (name, data)) for name, data in files]
    return client.post("/v1/models", data={"name": "network"}, files=parts)


@pytest.fixture
def network(client: httpx2.Client) -> dict[str, Any]:
    answer = create(client, ("model.onnx", small_network().SerializeToString()))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_graph_is_taken_in_and_described(client: httpx2.Client, network: dict[str, Any]) -> None:
    assert (network["status"], network["format"]) == ("ready", "onnx")
    assert (network["architecture"], network["task"]) == ("OnnxGraph", "image-classification")
    assert (network["parameters"], network["dtype"]) == (532, "float32")
    assert network["inspection"]["operators"]["Conv"] == 2
    assert [file["path"] for file in network["files"]] == ["model.onnx"]
    assert client.get(f"/v1/models/{network['id']}").json() == network
    assert client.get("/v1/models").json()["data"][0]["format"] == "onnx"


def test_an_upload_with_data_and_names(client: httpx2.Client, tmp_path: Path) -> None:
    small_network(
        tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}, "x": 1}')
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    upload = send_upload(client, contents)
    answer = client.post("/v1/models", json={"name": "apart", "upload": upload})
    assert answer.status_code == 201, answer.text
    assert answer.json()["inspection"]["tensors"] == 9
    assert len(answer.json()["files"]) == 3


def test_a_plan_says_what_is_known(client: httpx2.Client, network: dict[str, Any]) -> None:
    wanted = {"model": network["id"], "recipe": "group-l1", "target": {"parameters": 0.5}}
    found = client.post("/v1/plans", json=wanted).json()
    assert found["valid"] is True
    assert found["dense"] == {"parameters": 532, "bytes": network["bytes"]}
    assert found["pruned"] is None
    assert found["asked"] == {"kind": "parameters", "value": 0.5, "at_most": 266}
    assert "found when the job runs it" in found["notes"][0]
    assert found["specification"]["structure"]["granularity"] == "channel"
    assert found["specification"]["output"]["formats"] == ["onnx"]
    macs = client.post("/v1/plans", json={**wanted, "target": {"macs": 0.5}}).json()
    assert macs["asked"]["at_most"] is None


def test_a_latency_is_taken_in_multiples_of_eight(client: httpx2.Client, network: dict[str, Any]) -> None:
    wanted = {"model": network["id"], "recipe": "knapsack-kd", "target": {"latency": "2ms"}}
    wanted["options"] = {"criterion": "group-l1"}
    found = client.post("/v1/plans", json=wanted).json()
    assert found["asked"] == {"kind": "latency", "value": "2ms", "at_most": None}
    assert "times them on its device first" in found["latency"]["reason"]
    assert found["specification"]["options"]["channel_multiple"] == 8
    wanted["options"] = {"criterion": "group-l1", "channel_multiple": 12}
    answer = client.post("/v1/plans", json=wanted).json()
    assert answer["valid"] is False
    assert answer["errors"][0]["pointer"] == "/options/channel_multiple"


def test_a_job_is_taken_and_resolved(client: httpx2.Client, network: dict[str, Any]) -> None:
    wanted = {"model": network["id"], "recipe": "random-channels", "target": {"macs": 0.5}}
    answer = client.post("/v1/jobs", json=wanted)
    assert answer.status_code == 202, answer.text
    resolved = answer.json()["specification"]
    assert resolved["options"] == {
        "criterion": "random", "update": "none", "allocation": "global", "minimum_share": 0.1,
        "channel_multiple": 1, "sizes": {}, "normalise": "mean", "floor_rise": 0.05, "floor_rounds": 8,
        "floor_relax": 2.0, "floor_share": 0.125, "schedule": "one-shot", "steps": 200, "rounds": 5,
        "batch_size": 64, "learning_rate": None, "loss": "auto", "penalty": None, "units": "all",
        "data": "images", "synthetic_samples": 256, "class_weights": "none",
    }  # fmt: skip
    again = client.post("/v1/plans", json=resolved).json()
    assert again["specification"] == resolved


def test_single_weights_are_planned(client: httpx2.Client, network: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {"model": network["id"], "recipe": "magnitude", "target": {"sparsity": 0.5}}
    found = client.post("/v1/plans", json=wanted).json()
    assert found["specification"]["structure"]["granularity"] == "unstructured"
    assert found["cut"]["weights_removed"] == found["asked"]["at_most"] == 255
    assert sum(site["remove"] for site in found["cut"]["sites"]) == 255
    wanted |= {"structure": {"granularity": "2:6"}, "target": {"sparsity": 0.6667}}
    found = client.post("/v1/plans", json=wanted).json()
    assert [site["name"] for site in found["cut"]["sites"]] == ["conv2.weight", "fc.weight"]
    assert "conv1.weight" in found["notes"][1]
    wanted["options"] = {"allocation": "lim"}
    answer = client.post("/v1/jobs", json={**wanted, "structure": {"granularity": "unstructured"}})
    assert answer.status_code == 422
    assert "possible: dlp, erk, global, lamp, owl, uniform, zd" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"recipe": "slicegpt"}, "/recipe", "recipes for this model: alps, attention-maps, autobot"),
        ({"recipe": "obspa"}, "/calibration", "looks at images"),
        ({"options": {"update": "bias"}}, "/calibration", "looks at images"),
        ({"recovery": {"method": "lora"}}, "/recovery/method", "there are: batchnorm, distillation, none"),
        ({"recovery": {"method": "batchnorm"}}, "/recovery/dataset", "learns from images"),
        ({"recovery": {"method": "distillation"}}, "/recovery/dataset", "learns from images"),
        ({"output": {"formats": ["safetensors"]}}, "/output/formats", "comes back as one"),
        ({"output": {"dtype": "bfloat16"}}, "/output/dtype", "keep their types"),
        ({"structure": {"granularity": "head"}}, "/structure/granularity", "by 'channel' alone"),
        ({"structure": {"ignore": ["*"]}}, "/structure/ignore", "none can be left alone"),
        ({"options": {"allocation": "floors"}}, "/calibration", "looks at images"),
        ({"target": {"layers": 2}}, "/target/layers", "it offers: macs"),
        ({"target": {"parameters": 1000}}, "/target/parameters", "532 parameters as it is"),
        ({"options": {"minimum_share": 2.0}}, "/options/minimum_share", "Share of every group"),
        ({"options": {"sizes": {"length": 0}}}, "/options/sizes/length", "minimum"),
        ({"queue": "gpu"}, "/queue", "on processors"),
        ({"evaluation": {"gates": [{"metric": "perplexity", "max": 3}]}}, "/evaluation/gates/0/metric", ""),
    ],
)
def test_what_graphs_do_not_take_is_refused(
    client: httpx2.Client, network: dict[str, Any], changes: dict[str, Any], pointer: str, words: str
) -> None:
    wanted = {"model": network["id"], "recipe": "group-l1", "target": {"macs": 0.5}, **changes}
    answer = client.post("/v1/jobs", json=wanted)
    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]
    assert words in answer.json()["errors"][0]["message"]


def test_recipes_offered_for_graphs_of_other_tasks_need_no_images(client: httpx2.Client) -> None:
    sent = create(client, ("model.onnx", stored("recurrent").SerializeToString()))
    assert sent.json()["task"] == "other"
    wanted = {"model": sent.json()["id"], "recipe": "slicegpt", "target": {"macs": 0.5}}
    message = client.post("/v1/jobs", json=wanted).json()["errors"][0]["message"]
    offered = message.rpartition("recipes for this model: ")[2].rstrip(".").split(", ")
    needs = {one["name"]: one["needs"] for one in client.get("/v1/recipes").json()["data"]}
    assert {"group-l1", "group-lamp", "udfc"} <= set(offered)
    assert not any(needs[name] for name in offered)
    answer = client.post("/v1/jobs", json={**wanted, "recipe": "obspa"})
    assert "or options.data synthetic" in answer.json()["errors"][0]["message"]


def test_operators_that_cannot_be_computed_refuse_jobs_alone(client: httpx2.Client) -> None:
    made = small_network()
    made.graph.node[5].op_type = "GlobalLpPool"
    sent = create(client, ("model.onnx", made.SerializeToString()))
    assert sent.status_code == 201, sent.text
    wanted = {"model": sent.json()["id"], "recipe": "group-l1", "target": {"macs": 0.5}}
    answer = client.post("/v1/jobs", json=wanted)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/model"
    assert "GlobalLpPool (pool)" in answer.json()["errors"][0]["message"]


def test_a_bad_graph_is_a_problem(client: httpx2.Client) -> None:
    for data, code, words in (
        (model(graph(tensors=[tensor(dims=(3, 3))])), "onnx_invalid", "initializer number 0 'w'"),
        (model(opset=9), "onnx_unsupported", "13 to 22"),
        (b"<html>", "onnx_invalid", "HTML"),
    ):
        answer = create(client, ("model.onnx", data))
        assert answer.status_code == 422
        assert answer.json()["code"] == code
        assert words in answer.json()["detail"]
    answer = create(client, ("model.pt2", b"PK\x03\x04" + bytes(60)))
    assert answer.status_code == 422
    assert "secateur convert" in answer.json()["detail"]


def test_the_client_sends_a_file_or_a_folder(gateway: Gateway, client: httpx2.Client, tmp_path: Path) -> None:
    small_network(
        tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    (tmp_path / "notes.txt").write_text("stays here")
    key = client.headers.get("authorization", "").removeprefix("Bearer ")
    with Client(gateway.url, api_key=key or None, state_folder=tmp_path / "state") as connected:
        for place in (tmp_path / "model.onnx", tmp_path):
            sent = connected.upload_model(place, "network")
            assert {file.path for file in sent.files} == {"model.onnx", "model.onnx.data"}
            assert sent.inspection["kind"] == "graph"
        with pytest.raises(errors.ApiError, match="does not work on the family 'graph'"):
            connected.submit({"model": sent.id, "recipe": "shortgpt", "target": {"sparsity": 0.5}})
        program = tmp_path / "model.pt2"
        program.write_bytes(b"PK")
        with pytest.raises(errors.InputInvalid, match="secateur convert"):
            connected.upload_model(program)

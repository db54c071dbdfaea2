"""What can be asked for, and what a job would do."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from jsonschema import Draft202012Validator

from compression.anatomy.inspection import Inspection
from compression.loading.admission import admit_model, folder_sources
from tests.api.conftest import create_dataset, create_model
from tests.api.gateway import Gateway
from tests.timings import made_table
from workers.timings import keep_times


class TestRecipes:
    def test_all_in_one_page(self, client: httpx2.Client) -> None:
        listed = client.get("/v1/recipes").json()
        assert (listed["has_more"], listed["next"]) == (False, None)
        assert {"random", "magnitude", "wanda", "layer-drop"} <= {recipe["name"] for recipe in listed["data"]}
        for recipe in listed["data"]:
            assert client.get(f"/v1/recipes/{recipe['name']}").json() == recipe
            Draft202012Validator.check_schema(recipe["options"])

    def test_unknown_one_names_the_nearest(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/recipes/wonda")
        assert (answer.status_code, answer.json()["code"]) == (404, "recipe_not_found")
        assert "'wanda'" in answer.json()["detail"]


class TestPlans:
    def test_says_what_would_be_cut(self, client: httpx2.Client, model: str) -> None:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}}
        answer = client.post("/v1/plans", json=body)
        assert answer.status_code == 200
        plan = answer.json()
        assert (plan["valid"], plan["errors"]) == (True, [])
        assert plan["specification"]["structure"]["granularity"] == "unstructured"
        dense, pruned = plan["dense"], plan["pruned"]
        described = client.get(f"/v1/models/{model}").json()
        assert dense["parameters"] == described["parameters"] == pruned["parameters"]
        assert pruned["nonzeros"] < dense["nonzeros"]
        assert dense["bytes"] == described["bytes"]
        assert plan["cut"]["sites"]
        assert client.get("/v1/jobs").json()["data"] == []

    def test_layers(self, client: httpx2.Client, model: str) -> None:
        body = {"model": model, "recipe": "layer-drop", "target": {"layers": 1}}
        plan = client.post("/v1/plans", json=body).json()
        if plan["valid"]:
            assert plan["cut"]["layers_removed"] == 1
            assert plan["pruned"]["parameters"] < plan["dense"]["parameters"]
        else:
            assert {error["pointer"] for error in plan["errors"]} == {"/calibration"}

    def test_neurons_and_heads(self, client: httpx2.Client, model: str) -> None:
        body = {"model": model, "recipe": "magnitude-width", "target": {"parameters": 0.9}}
        plan = client.post("/v1/plans", json=body).json()
        assert plan["valid"], plan
        assert plan["ratios"]["parameters"] <= 0.9
        widths, shape = plan["cut"]["widths"], plan["cut"]["shape"]
        assert shape["ffn"] == widths["neuron"]["kept"] <= widths["neuron"]["dense"]
        assert all(site["kept_shape"] for site in plan["cut"]["sites"])
        job = client.post("/v1/jobs", json=body)
        assert job.json()["specification"] == plan["specification"]
        plan = client.post("/v1/plans", json=body | {"target": {"parameters": 0.001}}).json()
        assert [error["pointer"] for error in plan["errors"]] == ["/target/parameters"]
        assert "Reachable: ratios from" in plan["errors"][0]["message"]

    def test_with_a_domain(self, client: httpx2.Client, model: str, dataset: str) -> None:
        body = {"model": model, "recipe": "d-pruner", "target": {"sparsity": 0.5}}
        plan = client.post("/v1/plans", json=body | {"calibration": {"dataset": dataset}}).json()
        assert [error["pointer"] for error in plan["errors"]] == ["/calibration/domain"]
        domain = {"dataset": create_dataset(client)}
        calibration = {"dataset": dataset, "samples": 20, "domain": domain}
        plan = client.post("/v1/plans", json=body | {"calibration": calibration}).json()
        assert plan["valid"], plan
        assert plan["specification"]["calibration"]["domain"]["samples"] == 20
        assert plan["specification"]["evaluation"]["domain"]["dataset"] == domain["dataset"]
        plain = {"model": model, "recipe": "gblm", "target": {"sparsity": 0.5}}
        other = client.post(
            "/v1/plans", json=plain | {"calibration": {"dataset": dataset, "samples": 20}}
        ).json()
        assert plan["estimate"]["seconds"] > other["estimate"]["seconds"]

    def test_says_why_not(self, client: httpx2.Client, model: str) -> None:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 1.5}, "outptu": {}}
        answer = client.post("/v1/plans", json=body)
        assert answer.status_code == 200
        plan = answer.json()
        assert (plan["valid"], plan["specification"]) == (False, None)
        assert "/outptu" in {error["pointer"] for error in plan["errors"]}

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"structure": {"granularity": "2:4"}},
            {"structure": {"ignore": ["*down_proj*"]}},
            {"options": {"allocation": "global"}},
            {"target": {"bytes": 0.5}},
            {"target": {"layers": 99}},
            {"queue": "gpu"},
        ],
        ids=lambda changes: next(iter(changes), "plain"),
    )
    def test_agrees_with_jobs(self, client: httpx2.Client, model: str, changes: dict[str, object]) -> None:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}, **changes}
        plan, job = client.post("/v1/plans", json=body), client.post("/v1/jobs", json=body)
        assert plan.status_code == 200
        assert plan.json()["valid"] is (job.status_code == 202)
        if job.status_code == 202:
            assert plan.json()["specification"] == job.json()["specification"]
        else:
            assert plan.json()["errors"] == job.json()["errors"]

    def test_latency_is_not_guessed(self, client: httpx2.Client, model: str) -> None:
        body = {"model": model, "recipe": "magnitude-width", "target": {"latency": 0.7}}
        plan = client.post("/v1/plans", json=body).json()
        assert (plan["valid"], plan["pruned"], plan["latency"]["predictions"]) == (True, None, [])
        assert "No worker of this queue" in plan["latency"]["reason"]
        assert client.post("/v1/jobs", json=body).status_code == 202

    def test_latency_by_the_times_that_a_worker_left(
        self, gateway: Gateway, other: httpx2.Client, llama: Path
    ) -> None:
        inspection = Inspection.from_json(admit_model(folder_sources(llama)).inspection)
        tenant, secret = gateway.tenant()
        client = gateway.client(secret)
        keep_times(gateway.database, tenant, [made_table(inspection)])
        body = {"model": create_model(client, llama), "recipe": "magnitude-width", "target": {"latency": 0.7}}
        plan = client.post("/v1/plans", json=body).json()
        (said,) = plan["latency"]["predictions"]
        assert said["ratio"] <= 0.7
        assert said["dense"] == pytest.approx(0.024)
        assert plan["cut"]["shape"]["ffn"] < 64
        refused = client.post("/v1/plans", json=body | {"target": {"latency": 0.01}}).json()
        assert [error["pointer"] for error in refused["errors"]] == ["/target/latency"]
        assert "Reachable: ratios from" in refused["errors"][0]["message"]
        assert client.post("/v1/jobs", json=body | {"target": {"latency": 0.01}}).status_code == 422
        # Another tenant's model of the same shape has no times yet.
        body["model"] = create_model(other, llama)
        assert other.post("/v1/plans", json=body).json()["latency"]["predictions"] == []

    def test_unknown_model(self, client: httpx2.Client) -> None:
        body = {"model": "mdl_" + "0" * 26, "recipe": "magnitude", "target": {"sparsity": 0.5}}
        assert client.post("/v1/plans", json=body).json()["code"] == "model_not_found"

    def test_classifier(self, client: httpx2.Client, tmp_path: object) -> None:
        from tests import tiny_models

        bert = create_model(client, tiny_models.tiny_bert(Path(str(tmp_path)) / "bert", labels=["a", "b"]))
        body = {"model": bert, "recipe": "magnitude", "target": {"sparsity": 0.25}}
        assert client.post("/v1/plans", json=body).json()["valid"] is True

"""The probes, the figures, the pages of the service itself."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from service.settings import Settings
from tests.api.conftest import Submit
from tests.api.gateway import Gateway, serve


def figures(client: httpx2.Client) -> dict[tuple[str, tuple[str, ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestReady:
    def test_everything_is_there(self, gateway: Gateway) -> None:
        answer = gateway.client().get("/readyz").json()
        assert answer["status"] == "ok", answer
        assert {name: check["status"] for name, check in answer["checks"].items()} == {
            "database": "ok", "schema": "ok", "storage": "ok", "broker": "ok",
        }  # fmt: skip

    def test_broker_away_is_degraded_and_jobs_are_accepted(
        self, special: Callable[..., Settings], llama: object
    ) -> None:
        from pathlib import Path

        from tests.api.conftest import create_model

        nowhere = "redis://127.0.0.1:9/0"
        with serve(special(auth="off", broker_url=nowhere, sweep_seconds=3600)) as gateway:
            client = gateway.client()
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
            model = create_model(client, Path(str(llama)))
            body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}}
            assert client.post("/v1/jobs", json=body).status_code == 202
            assert gateway.contract.breaches == []

    def test_old_schema_is_not_ready(self, special: Callable[..., Settings], stack: object) -> None:
        empty = stack.new_database(migrated=False)  # type: ignore[attr-defined]
        with serve(special(auth="off", database_url=empty, sweep_seconds=3600)) as gateway:
            answer = gateway.client().get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert "migrate" in answer.json()["detail"]
            assert answer.json()["errors"][0]["pointer"] == "/checks/schema"
        stack.drop_database(empty)  # type: ignore[attr-defined]


class TestMetrics:
    def test_requests_by_route(self, gateway: Gateway, client: httpx2.Client) -> None:
        stranger = gateway.client()
        key = ("secateur_http_requests_total", ("GET", "/v1/models/{model_id}", "404"))
        before = figures(stranger).get(key, 0)
        for _ in range(3):
            client.get("/v1/models/mdl_x")
        after = figures(stranger)
        assert after[key] == before + 3
        assert not any("mdl_x" in label for _, labels in after for label in labels)

    def test_jobs_from_the_database(self, gateway: Gateway, submit: Submit) -> None:
        stranger = gateway.client()
        before = figures(stranger)
        submit()
        gateway.claim(submit())
        after = figures(stranger)
        for state in ("queued", "running"):
            key = ("secateur_jobs", (state,))
            assert after[key] == before[key] + 1
        assert after[("secateur_jobs_queued", ("cpu",))] == before[("secateur_jobs_queued", ("cpu",))] + 1
        assert after[("secateur_jobs_queued_oldest_seconds", ("cpu",))] > 0


class TestPages:
    def test_load_nothing_from_elsewhere(self, gateway: Gateway) -> None:
        for path in ("/", "/docs"):
            answer = gateway.client().get(path)
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "<script" not in answer.text
            assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", answer.text)

    def test_documentation_has_every_call_and_every_problem(self, gateway: Gateway) -> None:
        text = gateway.client().get("/docs").text
        for operations in gateway.app.openapi()["paths"].values():
            for operation in operations.values():
                assert f'id="{operation["operationId"]}"' in text
        for code in ("model_not_found", "json_invalid", "pickle_refused", "dataset_empty", "too_large"):
            assert f'id="problem-{code}"' in text

    def test_links_lead_somewhere(self, gateway: Gateway, client: httpx2.Client) -> None:
        text = client.get("/").text
        links = set(re.findall(r'href="(/[^"#]*)"', text))
        assert "/v1/recipes/wanda" in links
        for link in links:
            assert client.get(link).status_code == 200, link

    def test_every_problem_type_is_an_anchor(self, gateway: Gateway) -> None:
        problem = gateway.client().get("/v1/models").json()
        page, anchor = problem["type"].split("#")
        assert f'id="{anchor}"' in gateway.client().get(page).text

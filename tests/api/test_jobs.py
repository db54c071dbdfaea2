"""Jobs: created, read, waited for, cancelled, retried."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from compression.specification import parse
from service.broker import bell
from service.jobs import examples
from service.leases.repository import Leases
from tests.api.conftest import Submit
from tests.api.gateway import Gateway

NOBODY = "job_" + "0" * 26


class TestCreate:
    def test_accepted(self, client: httpx2.Client, model: str) -> None:
        body = {
            "model": model,
            "recipe": "magnitude",
            "target": {"sparsity": 0.5},
            "metadata": {"team": "search"},
        }
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert int(answer.headers["retry-after"]) > 0
        assert (job["state"], job["stage"], job["attempt"]) == ("queued", None, 0)
        assert (job["error"], job["result"], job["started_at"]) == (None, None, None)
        assert job["metadata"] == {"team": "search"}
        read = client.get(answer.headers["location"])
        assert read.json() == job
        assert int(read.headers["retry-after"]) > 0

    def test_specification_is_resolved(self, client: httpx2.Client, submit: Submit) -> None:
        resolved = client.get(f"/v1/jobs/{submit()}").json()["specification"]
        assert resolved["structure"]["granularity"] == "unstructured"
        assert resolved["target"] == {"sparsity": 0.5}
        assert resolved["recovery"]["method"] == "none"
        assert parse(resolved).to_json() == resolved

    def test_bell_is_rung_after_the_commit(self, gateway: Gateway, submit: Submit) -> None:
        rung = bell(gateway.settings.broker_url)
        before = rung.waiting("gpu")
        assert before is not None
        submit(queue="gpu")
        deadline = time.monotonic() + 10
        while rung.waiting("gpu") != before + 1:
            assert time.monotonic() < deadline, "no bell arrived"
            time.sleep(0.05)

    def test_first_event_is_the_state(self, client: httpx2.Client, submit: Submit) -> None:
        events = client.get(f"/v1/jobs/{submit()}/events").json()
        assert [(event["sequence"], event["type"], event["data"]["state"]) for event in events["data"]] == [
            (1, "state", "queued")
        ]


FAULTS = {
    "unknown key": ({"recipes": "x"}, "/recipes", "recipe"),
    "unknown key inside": ({"structure": {"granularty": "2:4"}}, "/structure/granularty", "granularity"),
    "unknown recipe": ({"recipe": "wonda"}, "/recipe", "wanda"),
    "two targets": ({"target": {"sparsity": 0.5, "layers": 1}}, "/target", "one"),
    "target out of range": ({"target": {"sparsity": 1.5}}, "/target/sparsity", ""),
    "n:m that does not fit the target": (
        {"structure": {"granularity": "2:4"}, "target": {"sparsity": 0.9}},
        "/target",
        "",
    ),
    "pattern that matches nothing": ({"structure": {"ignore": ["*.nothing"]}}, "/structure/ignore", ""),
    "unknown option": ({"options": {"alocation": "global"}}, "/options", "allocation"),
    "bad gate": ({"evaluation": {"gates": [{"metric": "perplexity"}]}}, "/evaluation/gates/0", ""),
    "calibration is needed": ({"recipe": "wanda"}, "/calibration", "calibration"),
    "missing target": ({"target": None}, "/target", ""),
}


class TestRefused:
    @pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
    def test_says_what_and_where(self, client: httpx2.Client, model: str, case: str) -> None:
        changes, pointer, says = FAULTS[case]
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}, **changes}
        answer = client.post("/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "specification_invalid"), answer.text
        faults = [fault for fault in answer.json()["errors"] if fault["pointer"].startswith(pointer)]
        assert faults, answer.json()["errors"]
        assert says in " ".join(fault["message"] for fault in faults)
        assert client.get("/v1/jobs").json()["data"] == []

    @pytest.mark.parametrize("name", ["mdl_" + "0" * 26, "mdl_x", "", "tiny", "dst_" + "0" * 26])
    def test_unknown_model(self, client: httpx2.Client, name: str) -> None:
        body = {"model": name, "recipe": "magnitude", "target": {"sparsity": 0.5}}
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code in {404, 422}
        assert answer.json()["errors"][0]["pointer"] == "/model"

    @pytest.mark.parametrize("part", ["calibration", "calibration/domain", "evaluation", "evaluation/domain"])
    def test_unknown_dataset(self, client: httpx2.Client, model: str, dataset: str, part: str) -> None:
        body: dict[str, Any] = {"model": model, "recipe": "d-pruner", "target": {"sparsity": 0.5}}
        for name in ("calibration", "evaluation"):
            body[name] = {"dataset": dataset, "domain": {"dataset": dataset}}
        place = body
        for name in part.split("/"):
            place = place[name]
        place["dataset"] = "dst_" + "0" * 26
        answer = client.post("/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")
        assert answer.json()["errors"][0]["pointer"] == f"/{part}/dataset"


class TestList:
    def test_newest_first_by_state(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        jobs = [submit() for _ in range(4)]
        gateway.claim(jobs[1])
        client.post(f"/v1/jobs/{jobs[2]}/cancel")
        listed = client.get("/v1/jobs").json()
        assert [job["id"] for job in listed["data"]] == jobs[::-1]
        for state, expected in {
            "queued": [jobs[3], jobs[0]],
            "running": [jobs[1]],
            "cancelled": [jobs[2]],
        }.items():
            found = client.get("/v1/jobs", params={"state": state}).json()
            assert [job["id"] for job in found["data"]] == expected
        page = client.get("/v1/jobs?state=queued&limit=1").json()
        assert (page["has_more"], page["next"]) == (True, jobs[3])
        assert client.get(f"/v1/jobs?state=queued&after={page['next']}").json()["data"][0]["id"] == jobs[0]

    def test_unknown_state(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/jobs?state=done")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/query/state")


class TestProgress:
    def test_fraction_is_computed(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        job = submit()
        lease = gateway.claim(job)
        with gateway.database.session() as session:
            Leases(session).heartbeat(lease, 600, progress={"done": 1, "total": 3}, stage="prune")
        read = client.get(f"/v1/jobs/{job}").json()
        assert (read["state"], read["stage"], read["attempt"]) == ("running", "prune", 1)
        assert read["progress"] == {"done": 1, "total": 3, "fraction": 0.3333, "eta_seconds": None}
        assert read["started_at"] is not None

    def test_result_and_failure(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        won, lost = submit(), submit()
        artifact = gateway.succeed(gateway.claim(won), {"model.safetensors": b"x"})
        answer = client.get(f"/v1/jobs/{won}")
        assert "retry-after" not in answer.headers
        assert answer.json()["result"] == {
            "summary": {"sparsity": 0.5}, "artifact": artifact, "report": f"/v1/jobs/{won}/report",
        }  # fmt: skip
        lease = gateway.claim(lost)
        with gateway.database.session() as session:
            Leases(session).fail(lease, "weights_not_finite", "NaN in model.layers.0")
        read = client.get(f"/v1/jobs/{lost}").json()
        assert (read["state"], read["error"]["code"]) == ("failed", "weights_not_finite")
        assert read["finished_at"] is not None


class TestWait:
    def test_answers_when_the_job_has_ended(
        self, client: httpx2.Client, gateway: Gateway, submit: Submit
    ) -> None:
        job = submit()
        lease = gateway.claim(job)
        timer = threading.Timer(0.6, gateway.succeed, (lease, {"a": b"x"}))
        timer.start()
        started = time.monotonic()
        answer = client.get(f"/v1/jobs/{job}?wait=20")
        assert answer.json()["state"] == "succeeded"
        assert 0.3 < time.monotonic() - started < 10
        timer.join()

    def test_answers_after_the_time(self, client: httpx2.Client, submit: Submit) -> None:
        job = submit()
        started = time.monotonic()
        assert client.get(f"/v1/jobs/{job}?wait=1").json()["state"] == "queued"
        assert 0.9 < time.monotonic() - started < 8

    @pytest.mark.parametrize("wait", ["-1", "61", "x", "1.5"])
    def test_bad_time(self, client: httpx2.Client, wait: str) -> None:
        assert client.get(f"/v1/jobs/{NOBODY}?wait={wait}").json()["code"] == "invalid_parameter"

    def test_waiting_holds_no_thread_and_no_connection(
        self, client: httpx2.Client, gateway: Gateway, submit: Submit
    ) -> None:
        job = submit()
        lease = gateway.claim(job)
        # More than there are threads in the pool of the server (40) or connections to its database (10).
        waiting = ThreadPoolExecutor(45)
        clients = [gateway.client(client.headers["authorization"].split()[1]) for _ in range(45)]
        answers = [waiting.submit(each.get, f"/v1/jobs/{job}?wait=30") for each in clients]
        time.sleep(1)
        started = time.monotonic()
        assert client.get(f"/v1/jobs/{job}").status_code == 200
        assert time.monotonic() - started < 5
        gateway.succeed(lease, {"a": b"x"})
        assert {answer.result(30).json()["state"] for answer in answers} == {"succeeded"}
        waiting.shutdown()


class TestCancel:
    def test_queued_job_ends_at_once(self, client: httpx2.Client, submit: Submit) -> None:
        job = submit()
        answer = client.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        again = client.post(f"/v1/jobs/{job}/cancel", json={})
        assert (again.status_code, again.json()) == (200, answer.json())

    def test_running_job_is_asked_to_stop(
        self, client: httpx2.Client, gateway: Gateway, submit: Submit
    ) -> None:
        job = submit()
        lease = gateway.claim(job)
        answer = client.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert answer.json()["cancel_requested_at"] is not None
        with gateway.database.session() as session:
            Leases(session).cancelled(lease)
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"

    def test_ended_job(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        job = submit()
        gateway.succeed(gateway.claim(job), {"a": b"x"})
        answer = client.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_finished")


class TestRetry:
    def test_cancelled_job_again(self, client: httpx2.Client, submit: Submit) -> None:
        old = submit()
        assert client.post(f"/v1/jobs/{old}/retry").json()["code"] == "job_not_finished"
        client.post(f"/v1/jobs/{old}/cancel")
        answer = client.post(f"/v1/jobs/{old}/retry", json={})
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (job["state"], job["retry_of"]) == ("queued", old)
        assert job["specification"] == client.get(f"/v1/jobs/{old}").json()["specification"]

    def test_not_one_that_succeeded(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        job = submit()
        gateway.succeed(gateway.claim(job), {"a": b"x"})
        assert client.post(f"/v1/jobs/{job}/retry").json()["code"] == "job_finished"

    def test_not_without_its_model(self, client: httpx2.Client, model: str, submit: Submit) -> None:
        job = submit()
        client.post(f"/v1/jobs/{job}/cancel")
        client.delete(f"/v1/models/{model}")
        answer = client.post(f"/v1/jobs/{job}/retry")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_example_of_the_documentation_is_valid() -> None:
    assert parse(examples.SPECIFICATION).recipe == "wanda"

"""Every answer of 400 and more is a problem document that says what is wrong and where."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx2
import pytest

from service.jobs import endpoints as jobs
from service.settings import Settings
from tests.api.gateway import Gateway, serve


class TestFrameworkErrors:
    def test_unknown_path(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/nothing")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    def test_unknown_path_outside_of_v1_needs_no_key(self, gateway: Gateway) -> None:
        assert gateway.client().get("/nothing").status_code == 404

    def test_wrong_method_names_all_methods_of_the_path(self, client: httpx2.Client) -> None:
        answer = client.put("/v1/models", json={})
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "GET, POST"
        assert client.post("/v1/models/mdl_x").headers["allow"] == "DELETE, GET"

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=job_1", "after=%00"])
    def test_bad_parameter_is_named(self, client: httpx2.Client, query: str) -> None:
        answer = client.get(f"/v1/models?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
        assert answer.json()["errors"][0]["pointer"] == f"/query/{query.split('=')[0]}"

    def test_bad_part_number(self, client: httpx2.Client) -> None:
        answer = client.put("/v1/uploads/upl_x/parts/one", content=b"")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/path/number")


class TestQueries:
    def test_unknown_parameter_names_the_nearest(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/jobs?stat=queued")
        assert (answer.status_code, answer.json()["code"]) == (400, "parameter_unknown")
        assert "did you mean 'state'" in answer.json()["detail"]
        assert answer.json()["errors"][0]["pointer"] == "/query/stat"

    def test_parameter_where_none_is_taken(self, client: httpx2.Client) -> None:
        assert client.get("/v1/recipes?limit=3").json()["code"] == "parameter_unknown"
        assert client.get("/livez?verbose=1").json()["code"] == "parameter_unknown"

    def test_parameter_given_twice(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/models?limit=3&limit=4")
        assert answer.json()["errors"][0]["code"] == "doubled_parameter"


BAD_JSON = {
    "cut off": (b'{"files": [', "line 1"),
    "empty": (b"", "line 1"),
    "a key twice": (b'{"files": [], "files": []}', "'files' is given twice"),
    "no JSON number": (b'{"files": NaN}', "NaN"),
    "a number beyond all measure": (b'{"files": 1e999}', "too large"),
    "thousands of digits": (b'{"files": ' + b"9" * 5000 + b"}", "digit"),
    "no UTF-8": (b'{"files": "\xff"}', "UTF-8"),
    "NUL in a text": (b'{"files": "a\\u0000"}', "NUL"),
    "half a surrogate pair": (b'{"files": "\\ud800"}', "surrogate"),
    "nested without end": (b"[" * 20000 + b"]" * 20000, "nested"),
    "nested deeply": (b'{"a":' * 40 + b"1" + b"}" * 40, "nested"),
}


class TestBodies:
    @pytest.mark.parametrize("case", BAD_JSON, ids=lambda case: case.replace(" ", "-"))
    def test_malformed_json(self, client: httpx2.Client, case: str) -> None:
        content, says = BAD_JSON[case]
        answer = client.post("/v1/uploads", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "json_invalid")
        assert says in answer.json()["detail"]

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense", None])
    def test_other_content_type(self, client: httpx2.Client, kind: str | None) -> None:
        headers = {"Content-Type": kind} if kind else {}
        for path in ("/v1/uploads", "/v1/models", "/v1/datasets", "/v1/jobs", "/v1/plans", "/v1/keys"):
            answer = client.post(path, content=b"{}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media"), path

    def test_json_over_the_limit(self, client: httpx2.Client, gateway: Gateway) -> None:
        content = b'{"name": "' + b"a" * gateway.settings.max_json_bytes + b'"}'
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/keys", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        # The same without an announced length.
        answer = client.post("/v1/keys", content=iter([content]), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    @pytest.mark.parametrize("body", [[], "text", 3, None, True])
    def test_not_an_object(self, client: httpx2.Client, body: object) -> None:
        for path in ("/v1/uploads", "/v1/models", "/v1/jobs", "/v1/plans"):
            headers = {"Content-Type": "application/json"}
            answer = client.post(path, content=json.dumps(body), headers=headers)
            if path == "/v1/plans":
                assert answer.json()["valid"] is False
            else:
                assert answer.status_code == 422, path

    def test_unknown_key_names_the_nearest(self, client: httpx2.Client) -> None:
        answer = client.post("/v1/keys", json={"nam": "ci"})
        assert (answer.status_code, answer.json()["code"]) == (422, "body_invalid")
        faults = {fault["pointer"]: fault for fault in answer.json()["errors"]}
        assert "did you mean 'name'" in faults["/nam"]["message"]
        assert faults["/name"]["code"] == "missing"

    def test_unknown_key_inside(self, client: httpx2.Client) -> None:
        body = {"files": [{"path": "a", "bytes": 1}, {"path": "b", "bytes": 1, "sha": "0"}]}
        fault = client.post("/v1/uploads", json=body).json()["errors"][0]
        assert fault["pointer"] == "/files/1/sha"
        assert "'sha256'" in fault["message"]

    def test_nothing_is_converted(self, client: httpx2.Client) -> None:
        answer = client.post("/v1/uploads", json={"files": [{"path": "a", "bytes": "1"}]})
        assert answer.json()["errors"][0]["pointer"] == "/files/0/bytes"

    def test_calls_without_a_body_take_none_or_an_empty_object(self, client: httpx2.Client) -> None:
        path = "/v1/jobs/job_00000000000000000000000000/cancel"
        assert client.post(path).status_code == 404
        assert client.post(path, json={}).status_code == 404
        assert client.post(path, json={"force": True}).json()["code"] == "body_invalid"


class TestUnforeseen:
    def test_tells_nothing_of_the_inside(
        self,
        special: Callable[..., Settings],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fails(*arguments: object, **named: object) -> None:
            raise RuntimeError("password of the database: hunter2")

        monkeypatch.setattr(jobs, "page_response", fails)
        with serve(special(auth="off")) as gateway:
            answer = gateway.client().get("/v1/jobs")
            assert answer.status_code == 500
            assert answer.json()["code"] == "internal"
            assert "hunter2" not in answer.text
            assert gateway.contract.breaches == []
        assert any("hunter2" in str(record.msg) for record in caplog.records)

    def test_database_away_is_503(self, special: Callable[..., Settings]) -> None:
        nowhere = "postgresql://nobody@127.0.0.1:9/none"
        with serve(special(auth="off", database_url=nowhere, sweep_seconds=3600)) as gateway:
            answer = gateway.client().get("/v1/models")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert gateway.client().get("/readyz").status_code == 503
            assert gateway.client().get("/livez").status_code == 200
            assert gateway.contract.breaches == []


class TestRequestIds:
    def test_given_id_is_kept(self, client: httpx2.Client) -> None:
        answer = client.get("/v1/models", headers={"X-Request-Id": "trace-0123.ab_c"})
        assert answer.headers["x-request-id"] == "trace-0123.ab_c"

    @pytest.mark.parametrize("given", ["short", "x" * 65, "with space 123", "semi;colon1"])
    def test_unusable_id_is_replaced(self, client: httpx2.Client, given: str) -> None:
        answer = client.get("/v1/models", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"].startswith("req_")

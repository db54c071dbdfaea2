"""What belongs to one tenant does not exist for another, on every route there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tests.api.conftest import Submit, create_dataset
from tests.api.gateway import Gateway, content_digest

PLACES = re.compile(r"\{(\w+)(?::\w+)?\}")


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and template of every route that names a thing of a tenant."""
    for route in iter_route_contexts(app.routes):
        path = str(route.path)
        if path.startswith("/v1/") and "_id}" in path:
            for method in sorted(route.methods or ()):
                yield method, path


@pytest.fixture
def things(gateway: Gateway, client: httpx2.Client, model: str, submit: Submit) -> dict[str, str]:
    """One of everything, of the client's tenant."""
    done = submit()
    artifact = gateway.succeed(gateway.claim(done), {"model.safetensors": b"weights"})
    upload = client.post("/v1/uploads", json={"files": [{"path": "a.txt", "bytes": 5}]}).json()["id"]
    key = client.post("/v1/keys", json={"name": "key"}).json()["id"]
    return {
        "model_id": model,
        "dataset_id": create_dataset(client),
        "upload_id": upload,
        "job_id": done,
        "artifact_id": artifact,
        "key_id": key,
        "number": "1",
        "path": "model.safetensors",
    }


def call(client: httpx2.Client, method: str, path: str) -> httpx2.Response:
    content = b"hello" if method == "PUT" else None
    headers = content_digest(b"hello") if method == "PUT" else {}
    return client.request(method, path, content=content, headers=headers)


def test_every_route_answers_404_to_others_and_not_to_the_owner(
    gateway: Gateway, client: httpx2.Client, other: httpx2.Client, things: dict[str, str]
) -> None:
    found = sorted(routes(gateway.app), key=lambda route: route[0] == "DELETE")
    assert len(found) >= 20
    for method, template in found:
        missing = set(PLACES.findall(template)) - set(things)
        assert not missing, f"teach this test about {missing} of {template}"
        path = PLACES.sub(lambda place: things[place.group(1)], template)
        foreign = call(other, method, path)
        assert foreign.status_code == 404, f"{method} {path} of another tenant: {foreign.status_code}"
        unknown = PLACES.sub(lambda place: re.sub(r"_\w+", "_" + "0" * 26, things[place.group(1)]), template)
        assert call(other, method, unknown).status_code == 404
        if method != "HEAD":
            # Nothing in the answer may tell the two cases apart.
            kinds = [answer.json()["code"] for answer in (foreign, call(other, method, unknown))]
            assert kinds[0] == kinds[1]
        own = call(client, method, path)
        assert own.status_code != 404, f"{method} {path} of the owner: {own.text}"


def test_every_route_needs_a_key(gateway: Gateway) -> None:
    stranger = gateway.client()
    for route in iter_route_contexts(gateway.app.routes):
        path = PLACES.sub("x", str(route.path))
        for method in sorted(route.methods or ()):
            if path.startswith("/v1"):
                assert stranger.request(method, path).status_code == 401, f"{method} {path}"


def test_lists_show_only_what_is_ones_own(
    client: httpx2.Client, other: httpx2.Client, things: dict[str, str]
) -> None:
    for kind in ("models", "datasets", "jobs", "artifacts"):
        assert [row["id"] for row in client.get(f"/v1/{kind}").json()["data"]] == [things[f"{kind[:-1]}_id"]]
        assert other.get(f"/v1/{kind}").json()["data"] == []
        # The id of another tenant's row as a cursor is a position like any other.
        assert other.get(f"/v1/{kind}?after={things[f'{kind[:-1]}_id']}").json()["data"] == []


def test_foreign_things_cannot_be_used(other: httpx2.Client, things: dict[str, str]) -> None:
    job = {"model": things["model_id"], "recipe": "magnitude", "target": {"sparsity": 0.5}}
    for path in ("/v1/jobs", "/v1/plans"):
        answer = other.post(path, json=job)
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
        assert answer.json()["errors"][0]["pointer"] == "/model"
    for kind in ("models", "datasets"):
        answer = other.post(f"/v1/{kind}", json={"name": "stolen", "upload": things["upload_id"]})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (404, "/upload")


def test_foreign_dataset_in_a_specification(client: httpx2.Client, other: httpx2.Client, model: str) -> None:
    body = {"model": model, "recipe": "wanda", "target": {"sparsity": 0.5}}
    foreign = create_dataset(other)
    for part in ({"calibration": {"dataset": foreign}}, {"evaluation": {"dataset": foreign}}):
        answer = client.post("/v1/jobs", json={**body, **part})
        assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(part))}/dataset"


def test_idempotency_keys_are_the_tenants_own(client: httpx2.Client, other: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "shared"}
    first = client.post("/v1/keys", json={"name": "a"}, headers=headers)
    second = other.post("/v1/keys", json={"name": "b"}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]

"""The description of the interface for machines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(home=tmp_path_factory.mktemp("home"), auth="off"))
    return dict(json.loads(json.dumps(app.openapi())))


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, found in document["paths"].items()
        for method, operation in found.items()
    ]


def test_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_operation_ids_are_short_and_unique(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(name.isalpha() and len(name) < 24 for name in names), names


def test_every_call_is_described(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["responses"]["default"]["content"]["application/problem+json"]
        assert ("security" in operation) is path.startswith("/v1")


def test_every_route_is_in_it(tmp_path: Any, document: dict[str, Any]) -> None:
    app = create_app(Settings(home=tmp_path, auth="off"))
    for route in iter_route_contexts(app.routes):
        if str(route.path).startswith("/v1"):
            described = document["paths"].get(route.path_format, {})
            for method in (route.methods or set()) - {"HEAD"}:
                assert method.lower() in described, (method, route.path)


def test_creating_calls_have_examples_and_take_the_key(document: dict[str, Any]) -> None:
    for name in ("createModel", "createDataset", "createUpload", "createJob", "createKey", "retryJob"):
        operation = next(found for _, _, found in operations(document) if found["operationId"] == name)
        assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}
        assert "example" in operation["requestBody"]["content"]["application/json"]
    for name in ("createModel", "createDataset"):
        operation = next(found for _, _, found in operations(document) if found["operationId"] == name)
        assert "multipart/form-data" in operation["requestBody"]["content"]


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    checked = 0
    for path, method, operation in operations(document):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [response.get("content", {}) for response in operation["responses"].values()]
        for content in contents:
            for body in content.values():
                if "example" in body and "schema" in body:
                    whole = {**body["schema"], "components": document["components"]}
                    faults = [
                        error.message for error in Draft202012Validator(whole).iter_errors(body["example"])
                    ]
                    assert not faults, (method, path, faults)
                    checked += 1
    assert checked >= 8


def test_specification_of_a_job_is_complete(document: dict[str, Any]) -> None:
    specification = document["components"]["schemas"]["JobSpecification"]
    assert {"model", "recipe", "target", "calibration", "recovery", "evaluation"} <= set(
        specification["properties"]
    )
    assert specification["additionalProperties"] is False

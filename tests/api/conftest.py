"""Fixtures of the interface's tests: one gateway for each stack, a fresh tenant for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from service.settings import Settings
from service.telemetry import configure_logging
from tests import tiny_models
from tests.api.gateway import Gateway, form_files, serve
from tests.stacks import Stack


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    configure_logging("error")


@pytest.fixture(scope="session")
def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with authentication, on both stacks."""
    settings = stack.settings(
        tmp_path_factory.mktemp("home"),
        database_url=stack.new_database(),
        blob_url=stack.new_blobs(),
        auth="required",
    )
    with serve(settings) as running:
        yield running
    stack.drop_database(settings.database_url)


@pytest.fixture(autouse=True)
def _every_answer_keeps_the_contract(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: every answer it got was a problem document, or what OpenAPI says."""
    running: Gateway | None = None
    if "gateway" in request.fixturenames:
        running = request.getfixturevalue("gateway")
    yield
    if running is not None:
        breaches, running.contract.breaches = running.contract.breaches, []
        assert not breaches, "\n".join(breaches)


@pytest.fixture
def client(gateway: Gateway) -> httpx2.Client:
    """A client of a tenant that has nothing yet."""
    return gateway.caller()


@pytest.fixture
def other(gateway: Gateway) -> httpx2.Client:
    """A client of another tenant."""
    return gateway.caller()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(client: httpx2.Client, llama: Path) -> str:
    """The id of a model of the client's tenant."""
    return create_model(client, llama)


def create_model(client: httpx2.Client, folder: Path, name: str = "tiny") -> str:
    """Bring a model as a form; its id."""
    answer = client.post("/v1/models", data={"name": name}, files=form_files(folder))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


TEXT = b"".join(b'{"text": "row %d of a small text for calibration"}\n' % row for row in range(40))


def create_dataset(client: httpx2.Client, content: bytes = TEXT, name: str = "text.jsonl") -> str:
    """Bring a dataset as a form; its id."""
    answer = client.post("/v1/datasets", data={"name": "text"}, files=[("files", (name, content))])
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def dataset(client: httpx2.Client) -> str:
    """The id of a dataset of the client's tenant."""
    return create_dataset(client)


Submit = Callable[..., str]


@pytest.fixture
def submit(client: httpx2.Client, model: str) -> Submit:
    """Creates a job on the client's model and returns its id."""

    def create(**changes: object) -> str:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}, **changes}
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    return create


@pytest.fixture
def special(stack: Stack, database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a gateway of a test's own, with a database of its own."""

    def settings(**changes: object) -> Settings:
        values = {"database_url": database_url, "blob_url": stack.new_blobs(), **changes}
        return stack.settings(tmp_path / "home", **values)

    return settings

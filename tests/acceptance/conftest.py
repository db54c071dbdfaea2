"""One real service for all journeys, a few tiny models, and text from the standard library's sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur import Client
from tests.acceptance.service import Running, running
from tests.tiny_models import tiny_bert, tiny_llama


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # One after another in one process: they share a service, and its jobs would wait for each other anyway.
    for item in items:
        if "/acceptance/" in item.path.as_posix():
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture
def client(service: Running, tmp_path: Path) -> Iterator[Client]:
    with Client(service.url, state_folder=tmp_path / "state") as connected:
        yield connected


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama", layers=3)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert", labels=["no", "yes"])


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of a few hundred words each."""
    words = Path(json.__file__).read_text(encoding="utf-8").split()
    documents = [" ".join(words[start : start + 120]) for start in range(0, 20 * 40, 40)]
    return write(
        tmp_path_factory.mktemp("data") / "text.jsonl", [{"text": document} for document in documents]
    )


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"text": f"sentence number {n} is {'good' if n % 2 else 'bad'}", "label": n % 2} for n in range(40)
    ]
    return write(tmp_path_factory.mktemp("data") / "labelled.jsonl", rows)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

"""A request with an Idempotency-Key is carried out once, however often it is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx2
import pytest

from service.idempotency import Turns
from tests.api.conftest import TEXT, Submit, create_dataset
from tests.api.gateway import Gateway, form_files, send_upload

KEY = {"Idempotency-Key": "5f0f2c1e-6f0e-4f8e-9a59-3a8d1d0a3c11"}

Send = Callable[[], httpx2.Response]


@pytest.fixture
def creations(client: httpx2.Client, llama: Path, model: str, submit: Submit) -> dict[str, Send]:
    """Every call that creates, with the key, ready to be sent again and again."""
    upload = send_upload(client, {"text.jsonl": TEXT})
    weights = send_upload(client, {path.name: path.read_bytes() for path in llama.iterdir()})
    job = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}}
    ended = submit()
    client.post(f"/v1/jobs/{ended}/cancel")

    def keyed(name: str, path: str, **body: object) -> tuple[str, Send]:
        return name, lambda: client.post(
            path, headers={"Idempotency-Key": f"key-{name.replace(' ', '-')}"}, **body
        )

    return dict(
        [
            keyed("model form", "/v1/models", data={"name": "m"}, files=form_files(llama)),
            keyed("model", "/v1/models", json={"name": "m", "upload": weights}),
            keyed("dataset form", "/v1/datasets", data={"name": "d"}, files=[("files", ("t.jsonl", TEXT))]),
            keyed("dataset", "/v1/datasets", json={"name": "d", "upload": upload}),
            keyed("upload", "/v1/uploads", json={"files": [{"path": "a", "bytes": 1}]}),
            keyed("job", "/v1/jobs", json=job),
            keyed("retry", f"/v1/jobs/{ended}/retry", json={}),
            keyed("key", "/v1/keys", json={"name": "k"}),
        ]
    )


def count(client: httpx2.Client) -> dict[str, int]:
    return {
        kind: len(client.get(f"/v1/{kind}?limit=100").json()["data"])
        for kind in ("models", "datasets", "jobs", "keys")
    }


def test_every_creating_call_is_replayed(client: httpx2.Client, creations: dict[str, Send]) -> None:
    creations = {name.replace(" ", "-"): send for name, send in creations.items()}
    for name, send in creations.items():
        first = send()
        assert first.status_code in {400, 201, 202}, first.text
        if first.status_code == 400:
            pytest.fail(f"{name}: {first.text}")
        before = count(client)
        again = send()
        assert again.status_code == first.status_code, name
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        if name != "key":
            assert again.json() == first.json(), name
        assert count(client) == before, name


class TestOtherRequest:
    def test_another_body(self, client: httpx2.Client, submit: Submit, model: str) -> None:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}}
        assert client.post("/v1/jobs", json=body, headers=KEY).status_code == 202
        answer = client.post("/v1/jobs", json={**body, "seed": 1}, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")

    def test_another_path(self, client: httpx2.Client) -> None:
        upload = send_upload(client, {"text.jsonl": TEXT})
        body = {"name": "x", "upload": upload}
        assert client.post("/v1/datasets", json=body, headers=KEY).status_code == 201
        assert client.post("/v1/models", json=body, headers=KEY).json()["code"] == "idempotency_key_reused"

    def test_another_file(self, client: httpx2.Client) -> None:
        def send(name: str, content: bytes, title: str = "d") -> httpx2.Response:
            files = [("files", (name, content))]
            return client.post("/v1/datasets", data={"name": title}, files=files, headers=KEY)

        first = send("a.txt", b"text")
        assert first.status_code == 201
        # The boundary differs with every sending; names and content count.
        assert send("a.txt", b"text").json() == first.json()
        for other in (send("a.txt", b"texx"), send("b.txt", b"text"), send("a.txt", b"text", "e")):
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


class TestFailure:
    def test_leaves_the_key_free(self, client: httpx2.Client) -> None:
        bad = client.post("/v1/datasets", data={"name": "d"}, files=[("files", ("a.txt", b""))], headers=KEY)
        assert bad.status_code == 422
        good = client.post(
            "/v1/datasets", data={"name": "d"}, files=[("files", ("a.txt", b"x"))], headers=KEY
        )
        assert good.status_code == 201

    @pytest.mark.parametrize("key", ["", "with space", "x" * 256, "tab\tbed"])
    def test_unusable_key(self, client: httpx2.Client, key: str) -> None:
        answer = client.post("/v1/keys", json={"name": "k"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")


class TestAtTheSameTime:
    def test_second_is_told_to_wait_while_the_first_still_sends(
        self, client: httpx2.Client, gateway: Gateway
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()
        kind = {"Content-Type": "multipart/form-data; boundary=b", **KEY}
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
        tail = b'text\r\n--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nd\r\n--b--\r\n'

        def slowly() -> Iterator[bytes]:
            yield head
            begun.set()
            go_on.wait(20)
            yield tail

        second = gateway.client(client.headers["authorization"].split()[1])
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/v1/datasets", content=slowly(), headers=kind)
            assert begun.wait(20)
            answer = self.until(second, head + tail, kind, 409)
            assert answer.json()["code"] == "request_in_progress"
            assert int(answer.headers["retry-after"]) > 0
            go_on.set()
            made = first.result()
        assert made.status_code == 201, made.text
        assert second.post("/v1/datasets", content=head + tail, headers=kind).json() == made.json()
        assert len(client.get("/v1/datasets").json()["data"]) == 1

    def until(
        self, client: httpx2.Client, content: bytes, headers: dict[str, str], status: int
    ) -> httpx2.Response:
        # The handler of the first request may not have begun: a cut form creates nothing until it has. But it
        # takes the key for a moment, in which the first would be the one that is told to wait.
        threading.Event().wait(2.0)
        answer = client.post("/v1/datasets", content=content[:-30], headers=headers)
        for _ in range(20):
            if answer.status_code == status:
                break
            threading.Event().wait(0.5)
            answer = client.post("/v1/datasets", content=content[:-30], headers=headers)
        return answer

    def test_one_of_many_is_carried_out(self, client: httpx2.Client, gateway: Gateway, model: str) -> None:
        body = {"model": model, "recipe": "magnitude", "target": {"sparsity": 0.5}}
        secret = client.headers["authorization"].split()[1]
        clients = [gateway.client(secret) for _ in range(8)]
        start = threading.Barrier(len(clients))

        def send(each: httpx2.Client) -> httpx2.Response:
            start.wait()
            while True:
                answer = each.post("/v1/jobs", json=body, headers=KEY)
                if answer.status_code != 409:
                    return answer

        with ThreadPoolExecutor(len(clients)) as pool:
            answers = list(pool.map(send, clients))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_without_a_key_every_request_counts(client: httpx2.Client) -> None:
    assert create_dataset(client) != create_dataset(client)


def test_turns_come_one_after_the_other() -> None:
    async def many() -> list[int]:
        turns, inside, most = Turns(), 0, []

        async def one(name: str) -> None:
            nonlocal inside
            async with turns.of(name):
                inside += 1
                most.append(inside)
                await anyio.sleep(0.01)
                inside -= 1

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one, "same")
        assert turns._waiting == {}
        return most

    assert anyio.run(many) == [1] * 5

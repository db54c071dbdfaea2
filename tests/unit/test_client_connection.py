"""Attempts, errors and waiting of the client against a server that misbehaves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur import Attempts, Client, Job, errors
from secateur.connection import DEFAULT_URL, service_url
from tests.unit.crooked_server import CrookedServer, crooked

QUICK = Attempts(count=5, first=0.001, longest=0.01)


@pytest.fixture
def server() -> Iterator[CrookedServer]:
    with crooked() as running:
        yield running


@pytest.fixture
def client(server: CrookedServer) -> Iterator[Client]:
    with Client(server.url, attempts=QUICK) as connected:
        yield connected


def job(state: str, **more: object) -> dict[str, object]:
    return {"id": "job_1", "state": state, "stage": None, "progress": None, "attempt": 1, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidRequest),
        (401, errors.NotAuthenticated),
        (403, errors.NotAllowed),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (418, errors.ApiError),
        (422, errors.InvalidRequest),
        (500, errors.ServiceFailure),
    ],
)
def test_statuses_become_errors_at_the_first_attempt(
    server: CrookedServer, client: Client, status: int, kind: type[errors.ApiError]
) -> None:
    server.trouble(
        "POST", "/v1/jobs", status, body={"code": "some_code", "detail": "Said so.", "request_id": "req_1"}
    )
    with pytest.raises(kind) as caught:
        client.submit({"model": "mdl_1"})
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.detail) == (status, "some_code", "Said so.")
    assert caught.value.request_id == "req_1"
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_statuses_are_tried_again_until_patience_ends(
    server: CrookedServer, client: Client, status: int
) -> None:
    for _ in range(QUICK.count):
        server.trouble("GET", "/v1/jobs/job_1", status)
    with pytest.raises(errors.ApiError) as caught:
        client.job("job_1")
    assert caught.value.status == status
    assert len(server.log) == QUICK.count


def test_retry_after_is_obeyed(server: CrookedServer, client: Client) -> None:
    server.jobs["job_1"] = job("queued")
    server.trouble("GET", "/v1/jobs/job_1", 429, headers={"Retry-After": "0.4"})
    begun = time.monotonic()
    assert client.job("job_1").state == "queued"
    assert time.monotonic() - begun >= 0.4


def test_creating_requests_keep_their_key_over_all_attempts(server: CrookedServer, client: Client) -> None:
    server.trouble("POST", "/v1/jobs", "drop")
    server.trouble("POST", "/v1/jobs", 503)
    server.trouble(
        "POST", "/v1/jobs", 409, headers={"Retry-After": "0"}, body={"code": "idempotency_in_progress"}
    )
    first = client.submit({"model": "mdl_1"})
    keys = [headers["Idempotency-Key"] for headers in server.requests("POST", "/v1/jobs")]
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert client.submit({"model": "mdl_1"}).id != first.id
    assert (
        client.submit({"model": "mdl_1"}, idempotency="mine").id == client.submit({}, idempotency="mine").id
    )


def test_nobody_there_is_told_quickly() -> None:
    begun = time.monotonic()
    url = f"http://127.0.0.1:{free_port()}"
    with (
        Client(url) as client,
        pytest.raises(errors.ServiceUnreachable, match="connection refused") as caught,
    ):
        client.job("job_1")
    assert url in str(caught.value)
    assert time.monotonic() - begun < 3


def test_service_that_is_restarted_is_waited_for() -> None:
    server = CrookedServer()
    server.start()
    port = int(server.url.rsplit(":", 1)[1])
    server.jobs["job_1"] = job("queued")
    with Client(server.url, attempts=Attempts(count=12, first=0.05, longest=0.3)) as client:
        assert client.job("job_1").state == "queued"
        server.stop()
        threading.Timer(1.0, server.start, [port]).start()
        assert client.job("job_1").state == "queued"
    server.stop()


def test_something_else_at_the_address_is_told() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    thread = threading.Thread(target=answer)
    thread.start()
    with (
        listener,
        Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
        pytest.raises(errors.AnswerNotUnderstood, match="not with JSON"),
    ):
        client.job("job_1")
    thread.join()


def test_redirects_are_not_followed_with_the_key(server: CrookedServer) -> None:
    server.trouble("GET", "/v1/jobs/job_1", 302, headers={"Location": "http://elsewhere.invalid/"})
    with (
        Client(server.url, "secret", attempts=QUICK) as client,
        pytest.raises(errors.AnswerNotUnderstood, match=r"elsewhere\.invalid"),
    ):
        client.job("job_1")
    assert server.log[0][2]["Authorization"] == "Bearer secret"


def test_address_and_key_come_from_the_environment(
    server: CrookedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_URL", server.url + "/")
    monkeypatch.setenv("SECATEUR_API_KEY", "from the environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.jobs["job_1"] = job("queued")
    with Client() as client:
        client.job("job_1")
    assert server.log[0][2]["Authorization"] == "Bearer from the environment"
    monkeypatch.delenv("SECATEUR_URL")
    assert service_url() == DEFAULT_URL
    with pytest.raises(errors.InputInvalid, match="http://"):
        service_url("127.0.0.1:8000")


def history(server: CrookedServer, count: int = 4) -> None:
    """A job that is running for the first look and has ended for every later one."""
    server.jobs["job_1"] = job("running")
    events = [(1, "state", {"state": "running", "attempt": 1}), (2, "stage", {"stage": "prune"})]
    events += [
        (n, "progress", {"stage": "prune", "done": n, "total": count + 2}) for n in range(3, count + 3)
    ]
    server.events["job_1"] = [*events, (count + 3, "done", {"state": "succeeded"})]


def finish_later(server: CrookedServer, seconds: float, **more: object) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: server.jobs.update(job_1=job("succeeded", **more)))
    timer.start()
    return timer


def test_waiting_follows_the_stream(server: CrookedServer, client: Client) -> None:
    history(server)
    timer = finish_later(
        server, 0.3, result={"artifact": "art_1", "summary": {"sparsity": 0.5}, "report": "..."}
    )
    seen: list[Job] = []
    ended = client.wait("job_1", on_progress=seen.append)
    timer.join()
    assert ended.state == "succeeded"
    assert ended.artifact == "art_1"
    assert ended.summary == {"sparsity": 0.5}
    moves = [(item.stage, item.progress.done) for item in seen if item.progress.done]
    assert moves[:4] == [("prune", 3), ("prune", 4), ("prune", 5), ("prune", 6)]


def test_waiting_resumes_a_stream_that_breaks(server: CrookedServer, client: Client) -> None:
    history(server, count=20)
    server.trouble("GET", "/events", "cut")
    server.trouble("GET", "/events", "drop")
    timer = finish_later(server, 0.3)
    seen: list[int | None] = []
    client.wait("job_1", on_progress=lambda item: seen.append(item.progress.done))
    timer.join()
    ids = [headers.get("Last-Event-ID") for headers in server.requests("GET", "/events")]
    assert ids[:3] == [None, "11", "11"]
    done = [count for count in seen if count]
    assert done == sorted(set(done))


def test_waiting_polls_where_streams_do_not_get_through(server: CrookedServer, client: Client) -> None:
    server.jobs["job_1"] = job("running")
    server.streams = False
    timer = finish_later(server, 0.2)
    assert client.wait("job_1").state == "succeeded"
    timer.join()
    assert len(server.requests("GET", "/events")) == 2
    assert server.requests("GET", r"/v1/jobs/job_1\?wait=25")


def test_waiting_ends_with_its_time(server: CrookedServer, client: Client) -> None:
    server.jobs["job_1"] = job("running")
    server.streams = False
    begun = time.monotonic()
    with pytest.raises(errors.WaitTimeout, match="still running") as caught:
        client.wait("job_1", timeout=0.3)
    assert caught.value.job.id == "job_1"
    assert time.monotonic() - begun < 3


def test_ended_jobs_say_how(server: CrookedServer, client: Client) -> None:
    server.jobs["job_1"] = job(
        "failed", stage="load", error={"code": "weights_not_finite", "message": "NaN in x.weight."}
    )
    with pytest.raises(
        errors.JobFailed, match=r"failed in stage load: NaN in x\.weight\. \(weights_not_finite\)"
    ):
        client.wait("job_1").raise_for_state()
    server.jobs["job_1"] = job("cancelled")
    with pytest.raises(errors.JobCancelled):
        client.wait("job_1").raise_for_state()
    assert client.wait("job_1").finished


def test_events_as_a_list_and_followed(server: CrookedServer, client: Client) -> None:
    history(server)
    assert [event.sequence for event in client.events("job_1", follow=True)] == list(range(1, 8))
    first = next(iter(client.events("job_1")))
    assert (first.type, first.data["state"], first.at) == ("state", "running", "2026-01-01T00:00:00Z")


def test_unknown_job_is_not_waited_for(server: CrookedServer, client: Client) -> None:
    with pytest.raises(errors.NotFound, match="no /v1/jobs/job_9"):
        client.wait("job_9")


def test_notes_that_cannot_be_kept_do_not_matter(server: CrookedServer, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder belongs")
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 100)
    with Client(server.url, attempts=QUICK, state_folder=tmp_path / "state") as client:
        assert client.upload_dataset(text).id.startswith("dat_")

"""What happened to a job, as JSON and as server-sent events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from service.jobs.sse import Pace
from tests.api.conftest import Submit
from tests.api.gateway import Gateway, events_of

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def job(gateway: Gateway, submit: Submit) -> str:
    """A job that has succeeded after some events."""
    made = submit()
    lease = gateway.claim(made)
    gateway.event(lease, "stage", stage="prune")
    for done in range(5):
        gateway.event(lease, "progress", done=done, total=5)
    gateway.event(lease, "log", message="two\nlines and Ünïcode")
    gateway.succeed(lease, {"a": b"x"})
    return made


class TestJson:
    def test_in_order_without_gaps(self, client: httpx2.Client, job: str) -> None:
        events = client.get(f"/v1/jobs/{job}/events").json()["data"]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events][:3] == ["state", "state", "stage"]
        assert events[-1]["type"] == "done"
        assert events[-1]["data"] == {"state": "succeeded"}

    def test_pages(self, client: httpx2.Client, job: str) -> None:
        everything = client.get(f"/v1/jobs/{job}/events").json()["data"]
        found, after = [], 0
        while True:
            page = client.get(f"/v1/jobs/{job}/events?limit=3&after={after}").json()
            found += page["data"]
            if not page["has_more"]:
                break
            after = page["next"]
        assert found == everything
        assert page["next"] is None


class TestStream:
    def test_everything_up_to_the_end(self, client: httpx2.Client, job: str) -> None:
        with client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-accel-buffering"] == "no"
            streamed = events_of(list(answer.iter_lines()))
        listed = client.get(f"/v1/jobs/{job}/events").json()["data"]
        assert [
            {"sequence": int(event["id"]), "type": event["event"], "data": json.loads(event["data"])}
            for event in streamed
        ] == [
            {
                "sequence": event["sequence"],
                "type": event["type"],
                "data": {**event["data"], "at": event["at"]},
            }
            for event in listed
        ]

    def test_continues_behind_the_last_event_id(self, client: httpx2.Client, job: str) -> None:
        last = len(client.get(f"/v1/jobs/{job}/events").json()["data"])
        headers = {**STREAM, "Last-Event-ID": str(last - 2)}
        with client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            assert [event["id"] for event in events_of(list(answer.iter_lines()))] == [
                str(last - 1),
                str(last),
            ]

    def test_nothing_more_is_204(self, client: httpx2.Client, job: str) -> None:
        last = len(client.get(f"/v1/jobs/{job}/events").json()["data"])
        for seen in (last, last + 7):
            answer = client.get(f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": str(seen)})
            assert (answer.status_code, answer.content) == (204, b"")
        assert client.get(f"/v1/jobs/{job}/events?after={last}", headers=STREAM).status_code == 204

    @pytest.mark.parametrize("seen", ["x", "-1", "1.0", "9" * 12])
    def test_bad_last_event_id(self, client: httpx2.Client, job: str, seen: str) -> None:
        answer = client.get(f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": seen})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")

    def test_events_arrive_as_they_happen(
        self, client: httpx2.Client, gateway: Gateway, submit: Submit
    ) -> None:
        job = submit()
        lease = gateway.claim(job)
        seen: list[tuple[str, float]] = []

        def happen() -> None:
            time.sleep(0.7)
            gateway.event(lease, "stage", stage="prune")
            time.sleep(0.7)
            gateway.succeed(lease, {"a": b"x"})

        thread = threading.Thread(target=happen)
        started = time.monotonic()
        thread.start()
        with client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    seen.append((line[7:], time.monotonic() - started))
        thread.join()
        assert [kind for kind, _ in seen] == ["state", "state", "stage", "state", "done"]
        assert seen[1][1] < 0.7 < seen[2][1] < seen[4][1]

    @pytest.fixture
    def hurried(self, gateway: Gateway) -> Iterator[None]:
        """Streams that ping after 0.1 s and end after 0.8 s."""
        usual = gateway.app.state.pace
        gateway.app.state.pace = Pace(slowest=0.05, soonest=0.05, ping=0.1, life=0.8)
        yield
        gateway.app.state.pace = usual

    @pytest.mark.usefixtures("hurried")
    def test_pings_and_life(self, client: httpx2.Client, submit: Submit) -> None:
        started = time.monotonic()
        with client.stream("GET", f"/v1/jobs/{submit()}/events", headers=STREAM) as answer:
            lines = list(answer.iter_lines())
        assert 0.7 < time.monotonic() - started < 8
        assert lines.count(": ping") >= 2
        assert "retry: 2000" in lines

    def test_many_streams_hold_no_threads(
        self, client: httpx2.Client, gateway: Gateway, submit: Submit
    ) -> None:
        job = submit()
        lease = gateway.claim(job)
        key = client.headers["authorization"].split()[1]
        streams = [
            gateway.client(key).stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) for _ in range(45)
        ]
        answers = [stream.__enter__() for stream in streams]
        started = time.monotonic()
        assert client.get(f"/v1/jobs/{job}").status_code == 200
        assert time.monotonic() - started < 5
        gateway.succeed(lease, {"a": b"x"})
        for answer in answers:
            assert events_of(list(answer.iter_lines()))[-1]["event"] == "done"
        for stream in streams:
            stream.__exit__(None, None, None)

    def test_abandoned_stream_ends(self, client: httpx2.Client, gateway: Gateway, submit: Submit) -> None:
        job = submit()
        active = gateway.app.state.metrics.active

        def until(count: int) -> None:
            deadline = time.monotonic() + 20
            while active._value.get() != count:
                assert time.monotonic() < deadline, "a stream lives on without a reader"
                time.sleep(0.05)

        until(0)
        with client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
            lines = answer.iter_lines()  # held: the end of an iterator ends the stream
            next(lines)
            until(1)
        until(0)

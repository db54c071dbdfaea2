"""The server roles: this command only starts `python -m service`, it imports nothing of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from secateur.errors import RoleUnavailable

NEEDS = {
    "up": ("all", ("fastapi", "uvicorn", "sqlalchemy", "celery", "torch", "transformers")),
    "worker": ("worker", ("celery", "sqlalchemy", "torch", "transformers")),
    "gateway": ("service", ("fastapi", "uvicorn", "sqlalchemy")),
    "migrate": ("service", ("alembic", "sqlalchemy")),
    "keys": ("service", ("sqlalchemy",)),
}


def missing(role: str) -> list[str]:
    """The packages that the role needs and this Python does not have."""
    _, packages = NEEDS[role]
    return [name for name in ("service", *packages) if importlib.util.find_spec(name) is None]


def command(role: str, arguments: Sequence[str]) -> list[str]:
    """The process to start for a role.

    Raises: RoleUnavailable, naming what to install.
    """
    lacking = missing(role)
    if lacking:
        extra, _ = NEEDS[role]
        raise RoleUnavailable(
            f"`secateur {role}` needs packages that are not installed here ({', '.join(lacking)}).\n"
            f"Install them with: pip install 'secateur[{extra}]'"
        )
    # Safe path: a folder called `service` where the command is run must not be taken for the package.
    return [sys.executable, "-P", "-m", "service", role, *arguments]


def become(role: str, arguments: Sequence[str]) -> NoReturn:
    """Turn this process into the role, so that signals and the exit status are its own.

    Raises: RoleUnavailable.
    """
    line = command(role, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execv(line[0], line)  # noqa: S606
    raise SystemExit(subprocess.run(line, check=False).returncode)

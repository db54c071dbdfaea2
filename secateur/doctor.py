"""Looking at this installation and at the service it talks to, before anything is asked of them."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from secateur import errors, roles
from secateur.client import Client
from secateur.connection import Attempts
from secateur.version import VERSION

Verdict = Literal["ok", "note", "fault"]

SERVER_SECONDS = 120.0
"""How long the server side may take to look at itself; it imports its engine once."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a fault keeps the client from working, a note limits what it can do."""

    name: str
    verdict: Verdict
    text: str


def examine(url: str | None, api_key: str | None) -> list[Finding]:
    """Everything this machine can tell without changing anything."""
    return [*_installation(), *_roles(), *_converter(), *_server(), *_service(url, api_key)]


def _installation() -> list[Finding]:
    new_enough = sys.version_info >= (3, 11)
    python = f"{platform.python_version()} at {sys.executable}"
    free = shutil.disk_usage(Path.cwd()).free
    return [
        Finding("client", "ok", f"secateur {VERSION}"),
        Finding(
            "python", "ok" if new_enough else "fault", python if new_enough else f"{python}; 3.11 is needed"
        ),
        Finding("disk", "ok" if free > 2e9 else "note", f"{free / 1e9:.1f} GB free here"),
    ]


def _roles() -> list[Finding]:
    found = []
    for role in ("gateway", "worker", "up"):
        lacking = roles.missing(role)
        extra = roles.NEEDS[role][0]
        text = (
            f"lacks {', '.join(lacking)}; pip install 'secateur[{extra}]'"
            if lacking
            else "can be started here"
        )
        found.append(Finding(f"secateur {role}", "note" if lacking else "ok", text))
    return found


def _server() -> list[Finding]:
    """What the server side says of this machine (sandbox, engine, storage), where it is installed."""
    if roles.missing("gateway"):
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "service", "doctor"],
            capture_output=True,
            text=True,
            timeout=SERVER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Finding("server", "note", f"gave no account of itself in {SERVER_SECONDS:g} s")]
    found = []
    for line in done.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        subject, _, text = rest.strip().partition(" ")
        # A client does not need the server side in order.
        found.append(Finding(f"server {subject}", "ok" if verdict == "ok" else "note", text.strip()))
    if not found:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        found.append(Finding("server", "note", reason))
    return found


def _converter() -> list[Finding]:
    lacking = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if lacking:
        return [Finding("secateur convert", "note", f"needs {' and '.join(lacking)} in this Python")]
    try:
        text = f"torch {version('torch')}, safetensors {version('safetensors')}"
    except PackageNotFoundError:
        text = "torch and safetensors are here"
    return [Finding("secateur convert", "ok", text)]


def _service(url: str | None, api_key: str | None) -> list[Finding]:
    try:
        client = Client(url, api_key, attempts=Attempts(count=2))
    except errors.InputInvalid as error:
        return [Finding("service", "fault", str(error))]
    with client:
        try:
            ready = client.ready()
        except errors.ServiceUnreachable as error:
            return [Finding("service", "fault", f"{error}; start one with: secateur up")]
        except errors.SecateurError as error:
            return [Finding("service", "fault", str(error))]
        found = [Finding("service", "ok", f"{client.url} is {ready.get('status', 'ready')}")]
        try:
            recipes = client.recipes()
            next(client.models(), None)
        except errors.SecateurError as error:
            return [*found, Finding("access", "fault", str(error))]
        return [*found, Finding("access", "ok", f"recipes: {', '.join(recipe.name for recipe in recipes)}")]

"""The commands of ``python -m service``. Each imports only what its own process needs."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.db import Database
    from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Secateur: model compression as a service."
)
keys = typer.Typer(no_args_is_help=True, help="API keys.")
app.add_typer(keys, name="keys")

DEFAULT_TENANT = "ten_default"


def main() -> None:
    """Entry point."""
    app()


@app.command()
def up(
    home: Annotated[Path | None, typer.Option(help="Folder for all data of the service.")] = None,
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)
    ] = 8000,
    workers: Annotated[int, typer.Option(help="CPU jobs that run at the same time.", min=1)] = 1,
    logs: Annotated[bool, typer.Option("--logs", help="Show the logs of all processes here too.")] = False,
) -> None:
    """Run the whole service on this machine, until Ctrl-C."""
    from service.embedded import Embedded
    from service.settings import default_home

    chosen = home or Path(os.environ.get("SECATEUR_HOME") or default_home())

    def say(text: str) -> None:
        typer.echo(text)
        sys.stdout.flush()

    raise typer.Exit(Embedded(chosen, port, workers, say, echo=logs).run())


@app.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=0, max=65535)] = None,
    fd: Annotated[int | None, typer.Option(help="Inherited listening socket to use instead.")] = None,
) -> None:
    """Serve the HTTP interface."""
    import uvicorn

    from service.app import create_app
    from service.telemetry import configure_logging

    if host is not None:
        os.environ["SECATEUR_HOST"] = host
    if port is not None:
        os.environ["SECATEUR_PORT"] = str(port)
    settings = _settings()
    configure_logging(settings.log_level)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    uvicorn.Server(config).run(sockets=sockets)


@app.command()
def worker(
    queue: Annotated[list[str] | None, typer.Option(help="Queue to take jobs from: cpu or gpu.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Jobs that run at the same time.", min=1)] = None,
) -> None:
    """Run jobs."""
    from service.broker import QUEUES

    queues = queue or ["cpu"]
    if unknown := set(queues) - set(QUEUES):
        raise typer.BadParameter(f"unknown queue {', '.join(sorted(unknown))}; there are {', '.join(QUEUES)}")
    settings = _settings()
    count = str(concurrency or settings.worker_concurrency)
    # The task's children divide the cores of the machine by this number.
    os.environ["SECATEUR_WORKER_CONCURRENCY"] = count
    name = f"{'-'.join(queues)}-{os.getpid()}@%h"
    options = ["-Q", ",".join(queues), "-c", count, "-n", name, "--loglevel", settings.log_level]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *options, *quiet]
    os.execv(sys.executable, command)  # noqa: S606


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    from service import schema

    schema.upgrade(_settings().database_url)


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="What the key is for.")]) -> None:
    """Make a key and print its secret, which is not shown again."""
    from service.keys.repository import Keys

    with _database().session() as session:
        row, secret = Keys(session, DEFAULT_TENANT).create(name)
        typer.echo(f"{row.id}  {row.name}", err=True)
    typer.echo(secret)


@keys.command("list")
def list_keys() -> None:
    """List the keys, newest first."""
    from service.keys.repository import Keys

    after: str | None = None
    database = _database()
    while True:
        with database.read() as session:
            page = Keys(session, DEFAULT_TENANT).list(after=after, limit=100)
            for row in page.data:
                state = "revoked" if row.revoked_at is not None else "active"
                typer.echo(f"{row.id}  {state:7}  {row.name}")
        if not page.has_more:
            return
        after = page.next


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Id of the key: key_...")]) -> None:
    """End a key at once."""
    from service.errors import KeyNotFound
    from service.keys.repository import Keys

    try:
        with _database().session() as session:
            row = Keys(session, DEFAULT_TENANT).revoke(key_id)
    except KeyNotFound as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{row.id} is revoked")


@app.command()
def doctor() -> None:
    """Check this machine and the configured database, broker and storage; non-zero when something fails."""
    from service.doctor import examine

    findings = examine(_settings())
    for finding in findings:
        typer.echo(f"{finding.verdict:8} {finding.subject:10} {finding.detail}")
    raise typer.Exit(int(any(finding.verdict == "failed" for finding in findings)))


def _settings() -> Settings:
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        raise typer.BadParameter(str(error)) from error


def _database() -> Database:
    from service.db import Database

    return Database(_settings().database_url)

"""`secateur models|datasets|jobs|artifacts|recipes ...`: what the service has, one resource a group."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur import closing, display, errors, options
from secateur.client import Client
from secateur.compress import GATES_FAILED
from secateur.progress import Steps
from secateur.types import Artifact, Dataset, Job, Model

Limit = Annotated[int, typer.Option(help="How many at most.")]
Id = Annotated[str, typer.Argument(metavar="ID")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")]

models = typer.Typer(help="Uploaded models.", no_args_is_help=True)
datasets = typer.Typer(help="Uploaded datasets.", no_args_is_help=True)
jobs = typer.Typer(help="Compression jobs.", no_args_is_help=True)
artifacts = typer.Typer(help="Compressed models.", no_args_is_help=True)
recipes = typer.Typer(help="What can be asked for.", no_args_is_help=True)
GROUPS = {"models": models, "datasets": datasets, "jobs": jobs, "artifacts": artifacts, "recipes": recipes}


@models.command("list")
def list_models(context: typer.Context, limit: Limit = 20, as_json: options.Json = False) -> None:
    """List models, newest first."""
    with Client(context.obj) as client:
        _list(
            itertools.islice(client.models(), limit),
            ("id", "name", "status", "architecture", "parameters", "bytes", "created"),
            lambda m: (
                m.id, m.name, m.status, m.architecture, display.number(m.parameters), display.size(m.bytes),
                display.moment(m.created_at),
            ),
            as_json,
        )  # fmt: skip


@models.command("show")
def show_model(context: typer.Context, model_id: Id) -> None:
    """Show one model as JSON, with what can be pruned."""
    with Client(context.obj) as client:
        display.show_json(client.model(model_id).raw)


@models.command("upload")
def upload_model(
    context: typer.Context, path: Path, name: options.Name = None, as_json: options.Json = False
) -> None:
    """Upload a transformers folder or an ONNX file; run again to continue after an interruption."""
    with Client(context.obj) as client, Steps() as steps:
        model = client.upload_model(path, name, steps.transfer("upload model"))
    _created(model, as_json)


@models.command("delete")
def delete_models(context: typer.Context, ids: list[str]) -> None:
    """Delete models."""
    with Client(context.obj) as client:
        _each(ids, client.delete_model, "deleted")


@datasets.command("list")
def list_datasets(context: typer.Context, limit: Limit = 20, as_json: options.Json = False) -> None:
    """List datasets, newest first."""
    with Client(context.obj) as client:
        _list(
            itertools.islice(client.datasets(), limit),
            ("id", "name", "kind", "documents", "bytes", "created"),
            lambda d: (
                d.id, d.name, d.kind, display.number(d.rows), display.size(d.bytes),
                display.moment(d.created_at),
            ),
            as_json,
        )  # fmt: skip


@datasets.command("show")
def show_dataset(context: typer.Context, dataset_id: Id) -> None:
    """Show one dataset as JSON."""
    with Client(context.obj) as client:
        display.show_json(client.dataset(dataset_id).raw)


@datasets.command("upload")
def upload_dataset(
    context: typer.Context, path: Path, name: options.Name = None, as_json: options.Json = False
) -> None:
    """Upload text (.jsonl, .txt) or images (.parquet, .npz, .zip, .tar)."""
    with Client(context.obj) as client, Steps() as steps:
        dataset = client.upload_dataset(path, name, steps.transfer(f"upload {path.name}"))
    _created(dataset, as_json)


@datasets.command("delete")
def delete_datasets(context: typer.Context, ids: list[str]) -> None:
    """Delete datasets."""
    with Client(context.obj) as client:
        _each(ids, client.delete_dataset, "deleted")


@jobs.command("list")
def list_jobs(
    context: typer.Context,
    limit: Limit = 20,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    as_json: options.Json = False,
) -> None:
    """List jobs, newest first."""
    with Client(context.obj) as client:
        _list(
            itertools.islice(client.jobs(state), limit),
            ("id", "state", "stage", "recipe", "target", "created", "note"),
            lambda j: (
                j.id, j.state, j.stage, j.specification.get("recipe"), _target(j),
                display.moment(j.created_at), j.error.message if j.error else "",
            ),
            as_json,
        )  # fmt: skip


@jobs.command("show")
def show_job(context: typer.Context, job_id: Id) -> None:
    """Show one job as JSON."""
    with Client(context.obj) as client:
        display.show_json(client.job(job_id).raw)


@jobs.command("wait")
def wait_for_job(
    context: typer.Context,
    job_id: Id,
    timeout: Annotated[float | None, typer.Option(help="Give up after this many seconds.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Wait until a job has ended, showing its progress. Interrupting this leaves the job running."""
    with Client(context.obj) as client:
        with Steps(quiet=quiet) as steps:
            job = client.wait(job_id, steps.job, timeout)
        if as_json:
            display.show_json(job.raw)
        job.raise_for_state()
        report = client.report(job_id)
        if not as_json:
            closing.show_report(report)
    if not closing.gates_passed(report):
        raise typer.Exit(GATES_FAILED)


@jobs.command("cancel")
def cancel_jobs(context: typer.Context, ids: list[str]) -> None:
    """Ask for jobs to be stopped."""
    with Client(context.obj) as client:
        _each(ids, client.cancel, "cancelling")


@jobs.command("retry")
def retry_job(context: typer.Context, job_id: Id, as_json: options.Json = False) -> None:
    """Run a failed or cancelled job again."""
    with Client(context.obj) as client:
        _created(client.retry(job_id), as_json)


@jobs.command("events")
def show_events(
    context: typer.Context,
    job_id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option(help="Begin after this sequence number.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Show what has happened to a job; with --json one object a line."""
    with Client(context.obj) as client:
        for event in client.events(job_id, after=after, follow=follow):
            data = json.dumps(dict(event.data), ensure_ascii=False)
            if as_json:
                line = {
                    "sequence": event.sequence,
                    "type": event.type,
                    "data": dict(event.data),
                    "at": event.at,
                }
                display.output.print(json.dumps(line, ensure_ascii=False), markup=False)
            else:
                display.output.print(f"{event.sequence:>6}  {event.type:<9} {data}", markup=False)


@jobs.command("report")
def show_job_report(
    context: typer.Context,
    job_id: Id,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the HTML page to this file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a job's report as a table, as JSON, or write its HTML page."""
    with Client(context.obj) as client:
        if html:
            page = client.report(job_id, format="html")
            try:
                html.write_text(page, encoding="utf-8")
            except OSError as error:
                raise errors.InputInvalid(f"{html} cannot be written: {error.strerror or error}") from error
            return
        report = client.report(job_id)
    if as_json:
        display.show_json(report)
    else:
        closing.show_report(report)


@artifacts.command("list")
def list_artifacts(context: typer.Context, limit: Limit = 20, as_json: options.Json = False) -> None:
    """List artifacts, newest first."""
    with Client(context.obj) as client:
        _list(
            itertools.islice(client.artifacts(), limit),
            ("id", "job", "format", "bytes", "created"),
            lambda a: (a.id, a.job_id, a.format, display.size(a.bytes), display.moment(a.created_at)),
            as_json,
        )


@artifacts.command("show")
def show_artifact(context: typer.Context, artifact_id: Id) -> None:
    """Show one artifact as JSON, with its files."""
    with Client(context.obj) as client:
        display.show_json(client.artifact(artifact_id).raw)


@artifacts.command("download")
def download_artifact(context: typer.Context, artifact_id: Id, out: OutDir) -> None:
    """Fetch all files of an artifact; run again to continue after an interruption."""
    with Client(context.obj) as client, Steps() as steps:
        client.download(artifact_id, out, steps.transfer("download"))
    display.output.print(str(out), markup=False)


@artifacts.command("delete")
def delete_artifacts(context: typer.Context, ids: list[str]) -> None:
    """Delete artifacts."""
    with Client(context.obj) as client:
        _each(ids, client.delete_artifact, "deleted")


@recipes.command("list")
def list_recipes(context: typer.Context, as_json: options.Json = False) -> None:
    """List recipes."""
    with Client(context.obj) as client:
        _list(
            client.recipes(),
            ("name", "granularity", "target", "needs", "summary"),
            lambda r: (
                r.name,
                ", ".join(r.granularities),
                ", ".join(r.targets),
                ", ".join(r.needs),
                r.summary,
            ),
            as_json,
        )


@recipes.command("show")
def show_recipe(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Show one recipe as JSON, with the schema of its options."""
    with Client(context.obj) as client:
        display.show_json(client.recipe(name).raw)


def _list(
    items: Iterable[Any], columns: Sequence[str], row: Callable[[Any], Sequence[object]], as_json: bool
) -> None:
    if as_json:
        display.show_json([item.raw for item in items])
    else:
        display.show_table(columns, [row(item) for item in items])


def _each(ids: Sequence[str], action: Callable[[str], object], done: str) -> None:
    for identifier in ids:
        action(identifier)
        display.output.print(f"{identifier} {done}", markup=False)


def _created(item: Model | Dataset | Job | Artifact, as_json: bool) -> None:
    if as_json:
        display.show_json(item.raw)
    else:
        display.output.print(item.id, markup=False)


def _target(job: Job) -> str:
    target = job.specification.get("target") or {}
    return ", ".join(f"{key} {value}" for key, value in target.items() if value is not None)

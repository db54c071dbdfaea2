"""The `secateur` command.

Exit status: 0 done; 1 the job failed, was cancelled, or a transfer failed for good; 2 wrong usage or refused
input; 3 the result does not pass its gates; 4 the service cannot be reached or fails; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur import compress as compressing
from secateur import convert as converting
from secateur import display, doctor, errors, listing, options, roles, specifying
from secateur.client import Client
from secateur.compress import INTERRUPTED, INVALID, JOB_FAILED, OK, UNREACHABLE
from secateur.connection import DEFAULT_URL
from secateur.version import VERSION

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
ROLE_HELP = {
    "up": "Start everything on this machine: database, queue, worker and service on 127.0.0.1.",
    "gateway": "Production: serve HTTP.",
    "worker": "Production: run jobs.",
    "migrate": "Production: bring the database to this version.",
    "keys": "Create, list and revoke API keys, on the machine that has the database.",
}

app = typer.Typer(
    help="Make trained models smaller, and say honestly what was gained and what was lost.",
    epilog=(
        "Exit status: 0 done, 1 job failed, 2 wrong usage or refused input, 3 gates not passed, "
        "4 service not reachable, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, group in listing.GROUPS.items():
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        display.output.print(f"secateur {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(envvar="SECATEUR_URL", help=f"Address of the service. Default: {DEFAULT_URL}"),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Keep the address for the command that follows; the key comes from SECATEUR_API_KEY only."""
    context.obj = url


@app.command()
def compress(
    context: typer.Context,
    path: options.ModelPath,
    sparsity: options.Sparsity = None,
    macs: options.Macs = None,
    target: options.Target = None,
    recipe: options.Recipe = None,
    granularity: options.Granularity = None,
    calibration: options.Calibration = None,
    evaluation: options.Evaluation = None,
    recovery: options.Recovery = None,
    recovery_steps: options.RecoverySteps = None,
    gate: options.Gate = None,
    out: options.Out = None,
    ignore: options.Ignore = None,
    option: options.Options = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    recovery_data: options.RecoveryData = None,
    domain: options.Domain = None,
    domain_evaluation: options.DomainEvaluation = None,
    recovery_option: options.RecoveryOption = None,
    evaluation_samples: options.EvaluationSamples = None,
    metric: options.Metric = None,
    baseline: options.Baseline = None,
    dtype: options.Dtype = None,
    format: options.Format = None,
    layout: options.Layout = None,
    seed: options.Seed = None,
    limit_seconds: options.LimitSeconds = None,
    queue: options.Queue = None,
    priority: options.Priority = None,
    metadata: options.Metadata = None,
    spec: options.Spec = None,
    name: options.Name = None,
    no_start: options.NoStart = False,
    no_wait: options.NoWait = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a model: upload, run, download, and show what came of it."""
    wish = specifying.Wish(
        base=specifying.read_base(spec),
        recipe=recipe,
        target=specifying.target(sparsity, target, macs),
        granularity=granularity,
        ignore=ignore or (),
        options=specifying.assignments("--option", option or ()),
        samples=samples,
        sequence_length=sequence_length,
        recovery=recovery,
        recovery_steps=recovery_steps,
        recovery_options=specifying.assignments("--recovery-option", recovery_option or ()),
        evaluation_samples=evaluation_samples,
        metrics=metric or (),
        gates=[specifying.gate(text) for text in gate or ()],
        baselines=baseline or (),
        dtype=dtype,
        formats=format or (),
        layout=layout,
        seed=seed,
        limit_seconds=limit_seconds,
        queue=queue,
        priority=priority,
        metadata=specifying.assignments("--metadata", metadata or (), plain=True),
    )
    if not wish.target and not wish.base.get("target"):
        raise errors.InputInvalid("Say how small: --sparsity 0.5, --macs 0.5, or --target KIND=VALUE.")
    texts = specifying.Texts(calibration, evaluation, recovery_data, domain, domain_evaluation)
    order = compressing.Order(path, name, texts, wish, out)
    with Client(context.obj) as client, _terminable():
        work = compressing.Compression(client, order, as_json=as_json, quiet=quiet)
        status = work.plan() if no_start else work.submit() if no_wait else work.run()
    raise typer.Exit(status)


def _plan_of(function: Callable[..., None]) -> Callable[..., None]:
    """`compress` without what concerns running, under the name `plan`."""

    @functools.wraps(function)
    def plan(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named, no_start=True)

    dropped = {"out", "no_start", "no_wait"}
    signature = inspect.signature(function, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in dropped]
    plan.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    plan.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    plan.__doc__ = "Say what would be cut and what would come of it, without running anything."
    return plan


app.command("plan")(_plan_of(compress))


@app.command("doctor")
def doctor_command(context: typer.Context, as_json: options.Json = False) -> None:
    """Look at this installation and at the service it talks to."""
    findings = doctor.examine(context.obj, None)
    if as_json:
        display.show_json([vars(finding) for finding in findings])
    else:
        display.show_table(("what", "", "finding"), [(f.name, f.verdict, f.text) for f in findings])
    raise typer.Exit(INVALID if any(finding.verdict == "fault" for finding in findings) else OK)


@app.command("convert")
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with pytorch_model.bin (or shards), or a .bin/.pt file; MODULE:FACTORY or a .pt2; "
            "folder with an image classifier of transformers or timm."
        ),
    ],
    destination: Annotated[
        Path | None, typer.Argument(help="New folder for the safetensors, or new .onnx file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The same as the second argument.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights for MODULE:FACTORY.")] = None,
    input: Annotated[
        list[str] | None, typer.Option(help="What MODULE:FACTORY takes: NAME:1x3x32x32[:DTYPE], batch first.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="A Python that has torch and what else is needed.")
    ] = None,
) -> None:
    """Turn pickled weights into safetensors, or a network into ONNX, on this machine.

    Masks that torch.nn.utils.prune left are folded. An image classifier (config.json and safetensors) becomes
    a folder with ONNX. Of pickled weights only plain tensors are read. MODULE:FACTORY and .pt2 files are run:
    use your own.
    """
    place = out or destination
    if place is None or (out and destination):
        raise errors.InputInvalid("Name one destination: a new folder, or a new .onnx file.")
    if converting.is_graph(source):
        raise typer.Exit(converting.run_graph(source, place, weights, input or (), python))
    if weights:
        raise errors.InputInvalid("--weights belongs to MODULE:FACTORY.")
    if converting.is_classifier(source):
        raise typer.Exit(converting.run_classifier(Path(source), place, input or (), python))
    if input:
        raise errors.InputInvalid("--input belongs to MODULE:FACTORY and to classifiers of images.")
    raise typer.Exit(converting.run(Path(source), place, python))


def _role(role: str) -> Callable[[typer.Context], None]:
    def start(context: typer.Context) -> None:
        roles.become(role, context.args)

    start.__doc__ = ROLE_HELP[role]
    return start


for role_name in ROLE_HELP:
    app.command(role_name, context_settings=PASS_THROUGH)(_role(role_name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    status = run(given)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    if status == INTERRUPTED:
        # Threads that still wait for the network must not keep an interrupted command alive.
        os._exit(status)
    raise SystemExit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status; every expected error is told in words."""
    try:
        status = app(list(arguments), standalone_mode=False, prog_name="secateur")
    except typer.TyperException as error:
        show = getattr(error, "show", None)
        if show:
            show()
        else:
            display.show_error(error)
        return INVALID
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except errors.SecateurError as error:
        _tell(error, as_json="--json" in arguments)
        return exit_status(error)
    return status if isinstance(status, int) else OK


def exit_status(error: errors.SecateurError) -> int:
    """The exit status that stands for an error."""
    if isinstance(error, (errors.ServiceUnreachable, errors.ServiceFailure, errors.AnswerNotUnderstood)):
        return UNREACHABLE
    if isinstance(
        error, (errors.JobFailed, errors.JobCancelled, errors.TransferCorrupted, errors.WaitTimeout)
    ):
        return JOB_FAILED
    return INVALID


def _tell(error: errors.SecateurError, *, as_json: bool) -> None:
    if as_json:
        faults = [vars(fault) for fault in getattr(error, "errors", ())]
        code = getattr(error, "code", None) or type(error).__name__
        display.show_json({"error": {"code": code, "message": str(error), "errors": faults}})
        return
    display.show_error(error)
    if isinstance(error, errors.ServiceUnreachable):
        if error.url == DEFAULT_URL:
            display.remark("Start one on this machine with `secateur up`, or name another with SECATEUR_URL.")
        else:
            display.remark("Is SECATEUR_URL right, and is the service running?")
    elif isinstance(error, errors.NotAuthenticated):
        display.remark("Set SECATEUR_API_KEY to a key of this service.")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM for an interruption, so that a running job is cancelled as by Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()

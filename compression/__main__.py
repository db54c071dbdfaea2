"""The engine by itself: `python -m compression catalogue | methods | run`.

catalogue   write compression/catalogue.json from the registries (--check: only say whether it is fresh)
methods     write docs/methods.md from the registries (--check: the same)
run         one job without the service: --model DIR --spec FILE --work DIR [--dataset ID=FILE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression.errors import CompressionError

ROOT = Path(__file__).resolve().parent


class _Console:
    """Prints what happens; progress only as it completes."""

    def stage(self, name: str) -> None:
        print(f"[{name}]", flush=True)

    def progress(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r  {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    def checkpoint(self, name: str, files: Sequence[Path], data: dict[str, Any]) -> None:
        return None

    def log(self, message: str) -> None:
        print(message, flush=True)

    def metric(self, name: str, value: float) -> None:
        print(f"  {name} = {value:.6g}", flush=True)


def _write(path: Path, text: str, check: bool) -> int:
    if check:
        fresh = path.exists() and path.read_text(encoding="utf-8") == text
        print(f"{path.name} is {'fresh' if fresh else 'stale: run this without --check'}")
        return 0 if fresh else 1
    path.write_text(text, encoding="utf-8")
    return 0


def _run(options: argparse.Namespace) -> int:
    from compression import pipeline
    from compression.standalone import resolve_alone

    datasets = dict(part.split("=", 1) for part in options.dataset)
    files = {name: Path(path) for name, path in datasets.items()}
    specification = resolve_alone(json.loads(options.spec.read_text()), options.model, files)
    request = pipeline.Request(
        specification,
        options.model,
        files,
        options.work,
        options.device,
        options.threads,
        options.cache,
    )
    pipeline.fork_nursery(request)
    outcome = pipeline.run(request, _Console())
    print(json.dumps(outcome.summary, indent=2))
    print(f"artifact: {outcome.artifact}\nreport: {outcome.report}\npage: {outcome.report_html}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m compression", description="The engine by itself.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("catalogue", "write catalogue.json"), ("methods", "write docs/methods.md")):
        generator = commands.add_parser(name, help=text)
        generator.add_argument("--check", action="store_true", help="only say whether the file is fresh")
    run = commands.add_parser("run", help="run one job without the service")
    run.add_argument("--model", type=Path, required=True, help="folder of the model")
    run.add_argument("--spec", type=Path, required=True, help="job specification, JSON")
    run.add_argument(
        "--work", type=Path, required=True, help="folder for scratch, checkpoints and the result"
    )
    run.add_argument("--dataset", action="append", default=[], metavar="ID=FILE", help="a dataset's file")
    run.add_argument("--cache", type=Path, help="folder for measurements that later runs may read again")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.command == "run":
        try:
            return _run(options)
        except CompressionError as error:
            print(json.dumps(error.to_json(), indent=2), file=sys.stderr)
            return 1
    from compression.generate import catalogue_text, methods_text

    if options.command == "catalogue":
        return _write(ROOT / "catalogue.json", catalogue_text(), options.check)
    return _write(ROOT.parent / "docs" / "methods.md", methods_text(), options.check)


if __name__ == "__main__":
    sys.exit(main())

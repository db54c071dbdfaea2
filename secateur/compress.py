"""`secateur compress`: a folder goes in, a smaller one and its report come out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import closing, display, errors
from secateur.client import Client
from secateur.folders import model_files
from secateur.progress import Steps
from secateur.specifying import Texts, Wish, specification
from secateur.types import Job

OK, JOB_FAILED, INVALID, GATES_FAILED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

CANCEL_SECONDS = 20.0
"""How long an interrupted command waits to see its job stop."""

_ID = re.compile(r"^(mdl|dst)_[0-9a-z]{20,}$")


@dataclass(frozen=True)
class Order:
    """What one run of the command works on. Models and datasets are paths, or ids of uploaded ones."""

    model: str
    name: str | None
    texts: Texts
    wish: Wish
    out: Path | None = None


class Compression:
    """One run of the command against one service."""

    def __init__(self, client: Client, order: Order, *, as_json: bool = False, quiet: bool = False) -> None:
        self._client = client
        self._order = order
        self._json = as_json
        self._quiet = quiet
        self._steps = Steps(quiet=quiet)

    def plan(self) -> int:
        """Upload what is needed, ask for a plan, show it."""
        self._check_inputs()
        with self._steps:
            spec = self._upload()
        plan = self._client.plan(spec)
        if self._json:
            display.show_json({"specification": spec, "plan": plan})
        else:
            closing.show_plan(plan)
        return OK if plan.get("valid", True) else INVALID

    def submit(self) -> int:
        """Upload, create the job, and leave it running."""
        self._check_inputs()
        with self._steps:
            job = self._client.submit(self._upload())
        if self._json:
            display.show_json(dict(job.raw))
        else:
            display.output.print(job.id)
            self._remark(f"Follow it with: secateur jobs wait {job.id}")
        return OK

    def run(self) -> int:
        """Upload, run the job, fetch the artifact and its report, show the table."""
        out = self._order.out
        if out is None:
            raise errors.InputInvalid("Say where the result belongs: --out DIR")
        self._check_inputs()
        _check_out(out)
        with self._steps:
            job = self._client.submit(self._upload())
            try:
                job = self._client.wait(job.id, on_progress=self._steps.job)
            except KeyboardInterrupt:
                self._cancel(job)
                raise
            job.raise_for_state()
            self._client.download(job.artifact, out, self._steps.transfer("download"))
            report = self._reports(job, out)
        passed = closing.gates_passed(report)
        if self._json:
            display.show_json(
                {"job": dict(job.raw), "out": str(out), "gates_passed": passed, "report": report}
            )
        else:
            closing.show_report(report)
            display.output.print(f"{out}: model, report.json, report.html", markup=False)
        if not passed:
            display.show_error("The result does not pass its gates; it was written nevertheless.")
        return OK if passed else GATES_FAILED

    def _check_inputs(self) -> None:
        """Find what is missing on this machine before anything is sent."""
        if not _ID.match(self._order.model):
            model_files(Path(self._order.model))
        for given in self._order.texts.given():
            if not _ID.match(given) and not Path(given).is_file():
                raise errors.InputInvalid(f"There is no file {given}.")

    def _upload(self) -> dict[str, Any]:
        """Send model and data, and return the specification with their ids."""
        order, sent = self._order, {}
        model = order.model
        if not _ID.match(model):
            folder = Path(model)
            uploaded = self._client.upload_model(folder, order.name, self._steps.transfer("upload model"))
            count = display.number(uploaded.parameters)
            self._remark(f"model {uploaded.id}: {uploaded.architecture}, {count} parameters")
            model = uploaded.id
        for given in order.texts.given():
            if given not in sent:
                sent[given] = given if _ID.match(given) else self._upload_dataset(Path(given))
        return specification(order.wish, model, order.texts.replaced(sent))

    def _upload_dataset(self, file: Path) -> str:
        dataset = self._client.upload_dataset(file, progress=self._steps.transfer(f"upload {file.name}"))
        return dataset.id

    def _cancel(self, job: Job) -> None:
        """The user has gone: stop the job, and see it stop."""
        self._remark(f"Interrupted; asking for job {job.id} to be cancelled.")
        try:
            self._client.cancel(job.id)
            ended = self._client.wait(job.id, timeout=CANCEL_SECONDS)
            self._remark(f"Job {job.id} is {ended.state}.")
        except errors.SecateurError as error:
            display.show_error(error)

    def _reports(self, job: Job, out: Path) -> dict[str, Any]:
        report: dict[str, Any] = self._client.report(job.id)
        page = self._client.report(job.id, format="html")
        try:
            (out / "report.json").write_text(
                json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (out / "report.html").write_text(page, encoding="utf-8")
        except OSError as error:
            raise errors.InputInvalid(
                f"The report cannot be written to {out}: {error.strerror or error}"
            ) from error
        return report

    def _remark(self, text: str) -> None:
        if not self._quiet:
            display.remark(text)


def _check_out(out: Path) -> None:
    """A folder that has weights already could end up as a mixture of two models.

    Raises: InputInvalid.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.glob("*.safetensors"))
    except OSError as error:
        raise errors.InputInvalid(f"{out} cannot be used: {error.strerror or error}") from error
    if taken:
        raise errors.InputInvalid(f"{out} has a model in it already; name another folder with --out.")

"""The client: everything a program does with a Secateur service, in plain calls that return plain values.

from secateur import Client

with Client() as client:
    model = client.upload_model("./my-model")
    text = client.upload_dataset("./calibration.jsonl")
    job = client.submit({
        "model": model.id, "recipe": "wanda", "target": {"sparsity": 0.5},
            "calibration": {"dataset": text.id},
        })
    job = client.wait(job.id).raise_for_state()
    client.download(job.artifact, "./smaller")
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx2

from secateur import errors
from secateur.connection import Attempts, Connection, idempotency_key
from secateur.downloads import Downloader
from secateur.folders import LocalFile, describe, model_files
from secateur.following import Follower, stream_events
from secateur.types import Artifact, Dataset, Event, Job, Model, Recipe
from secateur.uploads import SLOW, Uploader, UploadNotes

BytesDone = Callable[[int, int], None]
Specification = Mapping[str, Any]
T = TypeVar("T")


class Client:
    """A connection to one service. Usable from several threads; close it or use it as a context manager.

    Args:
        url: Address of the service; `SECATEUR_URL`, else http://127.0.0.1:8000.
        api_key: `SECATEUR_API_KEY` when left out; a service on loopback may need none.
        attempts: How patiently failed requests are repeated.
        state_folder: Where notes about interrupted uploads are kept; the user's state folder when left out.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        attempts: Attempts | None = None,
        state_folder: Path | None = None,
    ) -> None:
        self._connection = Connection(url, api_key, attempts=attempts)
        self._state_folder = state_folder

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._connection.url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def upload_model(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        progress: BytesDone | None = None,
        *,
        part_bytes: int | None = None,
    ) -> Model:
        """Upload a transformers folder (config.json, *.safetensors, tokenizer files), an ONNX file, or a
        folder
        with one and its data (*.data, *_data, *.weights), and return the model.

        Parts are sent several at a time. A call that was interrupted, in this process or another, is
        continued by calling again. `progress(done, total)` counts bytes.

        Raises: InputInvalid, ModelRejected, ApiError, ServiceUnreachable.
        """
        folder = Path(path)
        files = describe(model_files(folder))
        name = name or folder.resolve().name
        model = Model.from_json(self._upload("models", name, files, progress, part_bytes))
        return self._settled(model)

    def upload_dataset(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        progress: BytesDone | None = None,
        *,
        part_bytes: int | None = None,
    ) -> Dataset:
        """Upload text (.jsonl, .txt) or images (.parquet, .npz, .zip, .tar) and return the dataset.

        Raises: InputInvalid, ApiError (InvalidRequest says which line is wrong), ServiceUnreachable.
        """
        file = Path(path)
        if not file.is_file():
            raise errors.InputInvalid(f"There is no file {file}.")
        name = name or file.name
        return Dataset.from_json(self._upload("datasets", name, describe([file]), progress, part_bytes))

    def submit(self, specification: Specification, *, idempotency: str | None = None) -> Job:
        """Create a job; the same `idempotency` key and specification give the same job, however often sent.

        Raises: InvalidRequest with a pointer to each wrong field, ServiceUnreachable.
        """
        return Job.from_json(self._create("/v1/jobs", dict(specification), idempotency))

    def plan(self, specification: Specification) -> dict[str, Any]:
        """Check a specification and estimate its result, without running anything."""
        return self._connection.json("POST", "/v1/plans", body=dict(specification))

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job.from_json(self._connection.json("GET", f"/v1/jobs/{job_id}"))

    def wait(
        self, job_id: str, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None
    ) -> Job:
        """Wait until the job's state is final and return it; `raise_for_state()` turns failure into an error.

        `on_progress` gets the job at every change. A service that restarts meanwhile is waited for.

        Raises: WaitTimeout after `timeout` seconds, ApiError, ServiceUnreachable.
        """
        return Follower(self._connection, job_id, on_job=on_progress, timeout=timeout).run()

    def events(self, job_id: str, *, after: int = 0, follow: bool = False) -> Iterator[Event]:
        """The job's history from after a sequence number; with `follow`, until the job has ended."""
        last = after
        while True:
            answer = self._connection.json(
                "GET", f"/v1/jobs/{job_id}/events", params={"after": last, "limit": 100}
            )
            for event in map(Event.from_json, answer.get("data") or []):
                last = event.sequence
                yield event
                if event.type == "done":
                    return
            if answer.get("has_more"):
                continue
            if not follow:
                return
            yield from self._live(job_id, last)
            return

    def cancel(self, job_id: str) -> Job:
        """Ask for the job to be stopped; a running one ends within seconds."""
        return Job.from_json(self._connection.json("POST", f"/v1/jobs/{job_id}/cancel", body={}))

    def retry(self, job_id: str) -> Job:
        """Run a failed or cancelled job again."""
        return Job.from_json(self._create(f"/v1/jobs/{job_id}/retry", {}))

    def report(self, job_id: str, format: Literal["json", "html"] = "json") -> Any:
        """The report of a finished job: a dict, or the text of a self-contained HTML page."""
        if format == "html":
            return self._connection.text(f"/v1/jobs/{job_id}/report", accept="text/html")
        return self._connection.json("GET", f"/v1/jobs/{job_id}/report")

    def download(
        self, artifact_id: str | None, out_dir: str | os.PathLike[str], progress: BytesDone | None = None
    ) -> Path:
        """Fetch all files of an artifact into a folder and return it.

        Continues partial files, checks each sha256, renames at the end. `progress(done, total)` counts bytes.

        Raises: TransferCorrupted, InputInvalid, ApiError, ServiceUnreachable.
        """
        if not artifact_id:
            raise errors.InputInvalid("This job has no artifact; only a job that succeeded has one.")
        artifact = self.artifact(artifact_id)
        folder = Path(out_dir)
        Downloader(self._connection, f"/v1/artifacts/{artifact.id}/files", progress).run(
            artifact.files, folder
        )
        return folder

    def model(self, model_id: str) -> Model:
        """One model."""
        return Model.from_json(self._connection.json("GET", f"/v1/models/{model_id}"))

    def models(self) -> Iterator[Model]:
        """All models, newest first."""
        return self._pages("/v1/models", Model.from_json)

    def delete_model(self, model_id: str) -> None:
        """Delete a model."""
        self._connection.json("DELETE", f"/v1/models/{model_id}")

    def dataset(self, dataset_id: str) -> Dataset:
        """One dataset."""
        return Dataset.from_json(self._connection.json("GET", f"/v1/datasets/{dataset_id}"))

    def datasets(self) -> Iterator[Dataset]:
        """All datasets, newest first."""
        return self._pages("/v1/datasets", Dataset.from_json)

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset."""
        self._connection.json("DELETE", f"/v1/datasets/{dataset_id}")

    def jobs(self, state: str | None = None) -> Iterator[Job]:
        """All jobs, newest first; `state` keeps only those in it."""
        return self._pages("/v1/jobs", Job.from_json, {"state": state} if state else None)

    def artifact(self, artifact_id: str) -> Artifact:
        """One artifact."""
        return Artifact.from_json(self._connection.json("GET", f"/v1/artifacts/{artifact_id}"))

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts, newest first."""
        return self._pages("/v1/artifacts", Artifact.from_json)

    def delete_artifact(self, artifact_id: str) -> None:
        """Delete an artifact."""
        self._connection.json("DELETE", f"/v1/artifacts/{artifact_id}")

    def recipes(self) -> list[Recipe]:
        """Everything that can be asked for."""
        return [Recipe.from_json(item) for item in self._connection.json("GET", "/v1/recipes")["data"]]

    def recipe(self, name: str) -> Recipe:
        """One recipe with the JSON schema of its options."""
        return Recipe.from_json(self._connection.json("GET", f"/v1/recipes/{name}"))

    def ready(self) -> dict[str, Any]:
        """The service's own account of its health.

        Raises: ServiceFailure when it is not ready, ServiceUnreachable.
        """
        return self._connection.json("GET", "/readyz")

    def _upload(
        self, kind: str, name: str, files: list[LocalFile], progress: BytesDone | None, part_bytes: int | None
    ) -> dict[str, Any]:
        notes = UploadNotes(self.url, kind, name, files, self._state_folder)
        upload_id = Uploader(self._connection, files, notes, progress=progress, part_bytes=part_bytes).run()
        try:
            created = self._create(f"/v1/{kind}", {"name": name, "upload": upload_id}, notes.create_key)
        except errors.ApiError as error:
            if error.status < 500:
                notes.forget()
            raise
        notes.forget()
        return created

    def _settled(self, model: Model) -> Model:
        while model.status == "importing":
            time.sleep(0.5)
            model = self.model(model.id)
        if model.status == "rejected":
            code, message = (
                (model.error.code, model.error.message) if model.error else ("unknown", "no reason given")
            )
            raise errors.ModelRejected(model.id, code, message)
        return model

    def _create(self, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": key or idempotency_key()}
        return self._connection.json("POST", path, body=body, headers=headers, timeout=SLOW)

    def _live(self, job_id: str, last: int) -> Iterator[Event]:
        """Events as they happen, over as many streams as it takes."""
        poor = 0
        while True:
            before = last
            try:
                for event in stream_events(self._connection, job_id, last):
                    last = event.sequence
                    yield event
                    if event.type == "done":
                        return
            except httpx2.TransportError as error:
                if poor >= self._connection.attempts.count:
                    raise self._connection.unreachable(error) from error
            if last == before and self.job(job_id).finished:
                yield from self.events(job_id, after=last)
                return
            poor = 0 if last > before else poor + 1
            self._connection.pause(poor)

    def _pages(
        self, path: str, make: Callable[[dict[str, Any]], T], params: Mapping[str, Any] | None = None
    ) -> Iterator[T]:
        after: str | None = None
        while True:
            query = {**(params or {}), "limit": 100, **({"after": after} if after else {})}
            page = self._connection.json("GET", path, params=query)
            yield from map(make, page.get("data") or [])
            after = page.get("next")
            if not page.get("has_more") or not after:
                return

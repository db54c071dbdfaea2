"""/v1/datasets"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from service import ids
from service.auth import Call, Caller, Creator
from service.bodies import JsonBody, json_body, parse_body
from service.datasets import service
from service.datasets.repository import Datasets
from service.datasets.schemas import DatasetCreate, DatasetList, DatasetRead
from service.errors import DatasetNotFound
from service.files.repository import FileEntry
from service.idempotency import Answer, carry_out, form_fingerprint, in_flight, json_fingerprint, recall
from service.multipart import Form, boundary_of, receive_form
from service.paging import Pages, answers, file_form, page_response, takes, valid_id
from service.problems import FormInvalid
from service.uploads.service import completed_files

router = APIRouter(prefix="/datasets", tags=["datasets"])

_EXAMPLE = {"name": "calibration text", "upload": "upl_06a1hqk3v2x5w8y9z0abcdefgh"}
_FORM = file_form(
    "One file: .jsonl (rows with text, text and label, input and target, or messages), .txt, or images as "
    ".parquet, .npz, .zip or .tar."
)


@router.post(
    "",
    operation_id="createDataset",
    summary="Bring a dataset",
    status_code=201,
    responses=answers(DatasetRead, 201),
    openapi_extra=takes("DatasetCreate", example=_EXAMPLE, form=_FORM),
)
async def create_dataset(request: Request, call: Creator) -> Response:
    """Calibration, recovery, evaluation data: a form with the file, or JSON that names a completed upload.

    Text is read through once; the first line that cannot be used is named. Files of images are judged by
    their headers, footers and tables of contents: images are decoded by jobs alone.
    """
    with in_flight(request).hold(call):
        if boundary_of(request) is not None:
            form = await receive_form(
                request,
                call.blobs,
                file_fields=frozenset({"files"}),
                text_fields=frozenset({"name"}),
                limit=call.settings.max_upload_bytes,
            )
            fingerprint = form_fingerprint(request, form)
            answer = await run_in_threadpool(_from_form, call, form, fingerprint)
        else:
            body = await json_body(request)
            answer = await run_in_threadpool(_from_upload, call, body, json_fingerprint(request, body.raw))
    return answer.response(Location=f"/v1/datasets/{answer.body['id']}")


def _from_form(call: Call, form: Form, fingerprint: str) -> Answer:
    if "name" not in form.fields or not form.files:
        raise FormInvalid("a dataset needs the field 'name' and one file in 'files'")
    files = [FileEntry(file.path, file.sha256, file.bytes) for file in form.files]
    return _create(call, fingerprint, form.fields["name"], files)


def _from_upload(call: Call, body: JsonBody, fingerprint: str) -> Answer:
    wanted = parse_body(DatasetCreate, body.data)
    earlier = recall(call, fingerprint)
    if earlier is not None:
        return earlier
    with call.read() as session:
        files = completed_files(session, call.tenant, wanted.upload)
    return _create(call, fingerprint, wanted.name, files)


def _create(call: Call, fingerprint: str, name: str, files: Sequence[FileEntry]) -> Answer:
    earlier = recall(call, fingerprint)
    if earlier is not None:
        return earlier
    candidate = service.examine(call, name, files)
    return carry_out(call, fingerprint, lambda session: service.create(session, call.tenant, candidate))


@router.get("", operation_id="listDatasets", summary="List datasets", responses=answers(DatasetList))
def list_datasets(call: Caller, pages: Pages) -> Response:
    """Newest first."""
    with call.read() as session:
        page = Datasets(session, call.tenant).list(after=pages.behind(ids.DATASET), limit=pages.limit)
        return page_response(page.map(service.summary))


@router.get(
    "/{dataset_id}", operation_id="getDataset", summary="Read a dataset", responses=answers(DatasetRead)
)
def get_dataset(dataset_id: str, call: Caller) -> Response:
    """With its file and with what was found in it."""
    with call.read() as session:
        return JSONResponse(
            service.read(session, call.tenant, valid_id(dataset_id, ids.DATASET, DatasetNotFound))
        )


@router.delete("/{dataset_id}", operation_id="deleteDataset", summary="Delete a dataset", status_code=204)
def delete_dataset(dataset_id: str, call: Caller) -> Response:
    """Not while a queued or running job needs it."""
    with call.write() as session:
        Datasets(session, call.tenant).delete(valid_id(dataset_id, ids.DATASET, DatasetNotFound))
    return Response(status_code=204)

"""/v1/models"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from service import ids
from service.auth import Call, Caller, Creator
from service.bodies import JsonBody, json_body, parse_body
from service.errors import ModelNotFound
from service.files.repository import FileEntry
from service.idempotency import Answer, carry_out, form_fingerprint, in_flight, json_fingerprint, recall
from service.models import service
from service.models.repository import Models
from service.models.schemas import ModelCreate, ModelList, ModelRead
from service.multipart import Form, boundary_of, receive_form
from service.paging import Pages, answers, file_form, page_response, takes, valid_id
from service.problems import FormInvalid
from service.uploads.service import completed_files

router = APIRouter(prefix="/models", tags=["models"])

_EXAMPLE = {"name": "llama-5m", "upload": "upl_06a1hqk3v2x5w8y9z0abcdefgh"}
_FORM = file_form(
    "The files of a transformers folder, the file name being the path inside the folder; or one ONNX file "
    "with the files its tensors lie in."
)


@router.post(
    "",
    operation_id="createModel",
    summary="Bring a model",
    status_code=201,
    responses=answers(ModelRead, 201),
    openapi_extra=takes("ModelCreate", example=_EXAMPLE, form=_FORM),
)
async def create_model(request: Request, call: Creator) -> Response:
    """Either a form with the files, streamed into storage, or JSON that names a completed upload.

    The files are checked by content: a pickle, code in the configuration or weights that do not fit are
    refused here. An ONNX file (`format` `onnx`) is read by its structure; its `inspection` lists inputs,
    outputs and operators. Jobs do not take this format yet.
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
    return answer.response(Location=f"/v1/models/{answer.body['id']}")


def _from_form(call: Call, form: Form, fingerprint: str) -> Answer:
    if "name" not in form.fields or not form.files:
        raise FormInvalid("a model needs the field 'name' and one or more 'files'")
    files = [FileEntry(file.path, file.sha256, file.bytes) for file in form.files]
    return _create(call, fingerprint, form.fields["name"], files, {})


def _from_upload(call: Call, body: JsonBody, fingerprint: str) -> Answer:
    wanted = parse_body(ModelCreate, body.data)
    earlier = recall(call, fingerprint)
    if earlier is not None:
        return earlier
    with call.read() as session:
        files = completed_files(session, call.tenant, wanted.upload)
    return _create(call, fingerprint, wanted.name, files, wanted.metadata)


def _create(
    call: Call, fingerprint: str, name: str, files: Sequence[FileEntry], metadata: dict[str, Any]
) -> Answer:
    earlier = recall(call, fingerprint)
    if earlier is not None:
        return earlier
    candidate = service.examine(call, name, files, metadata)
    return carry_out(call, fingerprint, lambda session: service.create(session, call.tenant, candidate))


@router.get("", operation_id="listModels", summary="List models", responses=answers(ModelList))
def list_models(call: Caller, pages: Pages) -> Response:
    """Newest first."""
    with call.read() as session:
        page = Models(session, call.tenant).list(after=pages.behind(ids.MODEL), limit=pages.limit)
        return page_response(page.map(service.summary))


@router.get("/{model_id}", operation_id="getModel", summary="Read a model", responses=answers(ModelRead))
def get_model(model_id: str, call: Caller) -> Response:
    """With its files and with what can be pruned in it."""
    with call.read() as session:
        return JSONResponse(service.read(session, call.tenant, valid_id(model_id, ids.MODEL, ModelNotFound)))


@router.delete("/{model_id}", operation_id="deleteModel", summary="Delete a model", status_code=204)
def delete_model(model_id: str, call: Caller) -> Response:
    """Not while a queued or running job needs it. Artifacts made from it stay."""
    with call.write() as session:
        Models(session, call.tenant).delete(valid_id(model_id, ids.MODEL, ModelNotFound))
    return Response(status_code=204)

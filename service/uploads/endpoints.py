"""/v1/uploads"""

from __future__ import annotations

from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from service import ids
from service.auth import Call, Caller, Creator
from service.blobs import Blob, BlobWriter
from service.bodies import JsonBody, json_body, optional_json_body, parse_body
from service.errors import DigestMismatch, PartInvalid, UploadNotFound
from service.idempotency import carry_out, in_flight, json_fingerprint
from service.paging import answers, takes, valid_id
from service.uploads import service
from service.uploads.repository import Uploads
from service.uploads.schemas import PartReceived, UploadComplete, UploadCreate, UploadRead

router = APIRouter(prefix="/uploads", tags=["uploads"])

BATCH = 1024 * 1024
_EXAMPLE = {
    "files": [{"path": "model.safetensors", "bytes": 90868376, "sha256": "0" * 64}],
    "part_bytes": 67108864,
}


@router.post(
    "",
    operation_id="createUpload",
    summary="Open an upload",
    status_code=201,
    responses=answers(UploadRead, 201),
    openapi_extra=takes("UploadCreate", example=_EXAMPLE),
)
def create_upload(request: Request, call: Creator, body: Annotated[JsonBody, Depends(json_body)]) -> Response:
    """Say which files will come; the answer lists the parts to send."""
    wanted = parse_body(UploadCreate, body.data)
    with in_flight(request).hold(call):
        fingerprint = json_fingerprint(request, body.raw)
        answer = carry_out(call, fingerprint, lambda session: service.create(session, call, wanted))
    return answer.response(Location=f"/v1/uploads/{answer.body['id']}")


@router.get("/{upload_id}", operation_id="getUpload", summary="Read an upload", responses=answers(UploadRead))
def get_upload(upload_id: str, call: Caller) -> Response:
    """Which parts have been received: where to go on after any interruption."""
    with call.read() as session:
        return JSONResponse(
            service.read(session, call.tenant, valid_id(upload_id, ids.UPLOAD, UploadNotFound))
        )


@router.put(
    "/{upload_id}/parts/{number}",
    operation_id="putPart",
    summary="Send a part",
    responses=answers(PartReceived),
    openapi_extra={
        "parameters": [
            {
                "name": "Content-Digest",
                "in": "header",
                "required": True,
                "schema": {"type": "string"},
                "description": "sha-256=:<base64 of the sha256 of this part>: (RFC 9530)",
            }
        ],
        "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {}}}},
    },
)
async def put_part(request: Request, upload_id: str, number: int, call: Caller) -> Response:
    """The bytes of one part, streamed. Sending a part again replaces it; order does not matter."""
    upload_id = valid_id(upload_id, ids.UPLOAD, UploadNotFound)
    part = await run_in_threadpool(_expected, call, upload_id, number)
    digest = service.announced_digest(request.headers.get("content-digest"))
    blob = await _receive(request, call, part.bytes)
    if blob.sha256 != digest:
        raise DigestMismatch(
            f"part {number} arrived with the sha256 {blob.sha256}, not {digest}; send it again"
        )
    await run_in_threadpool(_note, call, upload_id, number, blob)
    return JSONResponse({"number": number, "sha256": blob.sha256, "bytes": blob.bytes})


def _expected(call: Call, upload_id: str, number: int) -> service.Part:
    with call.read() as session:
        return service.expected_part(session, call.tenant, upload_id, number)


def _note(call: Call, upload_id: str, number: int, blob: Blob) -> None:
    with call.write() as session:
        Uploads(session, call.tenant).put_part(
            upload_id, number, blob.sha256, blob.bytes, ttl_seconds=call.settings.upload_ttl
        )


async def _receive(request: Request, call: Call, expected: int) -> Blob:
    """Stream the body into a blob of exactly `expected` bytes; else raises PartInvalid, keeping nothing."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) != expected:
        raise PartInvalid(f"this part has {expected} bytes; {announced} are announced")
    writer: BlobWriter = await run_in_threadpool(call.blobs.writer)
    try:
        waiting: list[bytes] = []
        total = written = 0
        async for piece in request.stream():
            total += len(piece)
            if total > expected:
                raise PartInvalid(f"this part has {expected} bytes; more were sent")
            waiting.append(piece)
            if total - written >= BATCH or total == expected:
                await run_in_threadpool(writer.write, b"".join(waiting))
                waiting, written = [], total
        if total != expected:
            raise PartInvalid(f"this part has {expected} bytes; {total} were sent")
        return await run_in_threadpool(writer.commit)
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(writer.abort)


@router.post(
    "/{upload_id}/complete",
    operation_id="completeUpload",
    summary="Complete an upload",
    responses=answers(UploadRead),
    openapi_extra=takes("UploadComplete", example={}, required=False),
)
async def complete_upload(
    request: Request,
    upload_id: str,
    call: Caller,
    body: Annotated[JsonBody, Depends(optional_json_body)],
) -> Response:
    """Join the parts and check the announced sha256 of every file. Doing it again changes nothing."""
    parse_body(UploadComplete, body.data)
    upload_id = valid_id(upload_id, ids.UPLOAD, UploadNotFound)
    # Joining takes as long as copying does. A client that lost patience and asks again waits for the end
    # of the first joining instead of starting a second one.
    async with request.app.state.turns.of(upload_id):
        return JSONResponse(await run_in_threadpool(service.complete, call, upload_id))


@router.delete("/{upload_id}", operation_id="deleteUpload", summary="Give up an upload", status_code=204)
def delete_upload(upload_id: str, call: Caller) -> Response:
    """Its parts are forgotten. Models and datasets made from it stay."""
    with call.write() as session:
        Uploads(session, call.tenant).abort(valid_id(upload_id, ids.UPLOAD, UploadNotFound))
    return Response(status_code=204)

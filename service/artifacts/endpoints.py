"""/v1/artifacts"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from service import ids
from service.artifacts import service
from service.artifacts.archive import Archive
from service.artifacts.repository import Artifacts
from service.artifacts.schemas import ArtifactList, ArtifactRead
from service.auth import Call, Caller
from service.downloads import disposition, file_response, matches, media_type_of
from service.errors import ArtifactNotFound, FileNotFound
from service.files.repository import FileEntry
from service.paging import Pages, answers, page_response, valid_id

router = APIRouter(prefix="/artifacts", tags=["artifacts"])

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": {"application/octet-stream": {"schema": {}}}},
    206: {"description": "The range that was asked for."},
    304: {"description": "The file is the one of If-None-Match."},
}
_TAR: dict[int | str, dict[str, Any]] = {
    200: {"description": "A tar of all files.", "content": {"application/x-tar": {"schema": {}}}}
}


@router.get("", operation_id="listArtifacts", summary="List artifacts", responses=answers(ArtifactList))
def list_artifacts(call: Caller, pages: Pages) -> Response:
    """Newest first."""
    with call.read() as session:
        page = Artifacts(session, call.tenant).list(after=pages.behind(ids.ARTIFACT), limit=pages.limit)
        return page_response(page.map(service.summary))


@router.get(
    "/{artifact_id}", operation_id="getArtifact", summary="Read an artifact", responses=answers(ArtifactRead)
)
def get_artifact(artifact_id: str, call: Caller) -> Response:
    """Its files with their hashes, and the manifest."""
    with call.read() as session:
        return JSONResponse(service.read(session, call.tenant, _valid(artifact_id)))


@router.delete("/{artifact_id}", operation_id="deleteArtifact", summary="Delete an artifact", status_code=204)
def delete_artifact(artifact_id: str, call: Caller) -> Response:
    """Its files go; the job and its report stay."""
    with call.write() as session:
        Artifacts(session, call.tenant).delete(_valid(artifact_id))
    return Response(status_code=204)


@router.head("/{artifact_id}/files/{path:path}", include_in_schema=False)
@router.get(
    "/{artifact_id}/files/{path:path}",
    operation_id="getArtifactFile",
    summary="Download a file",
    response_class=Response,
    responses=_BYTES,
)
async def get_file(request: Request, artifact_id: str, path: str, call: Caller) -> Response:
    """One file, or a range of it. The ETag is its sha256; Repr-Digest is that of the whole file."""
    entry: FileEntry = await run_in_threadpool(_file, call, _valid(artifact_id), path)
    name = disposition(path.rsplit("/", 1)[-1])
    return file_response(
        request,
        call.blobs,
        entry.sha256,
        entry.bytes,
        media_type=media_type_of(path),
        headers={"Content-Disposition": name},
    )


@router.head("/{artifact_id}/archive", include_in_schema=False)
@router.get(
    "/{artifact_id}/archive",
    operation_id="getArtifactArchive",
    summary="Download everything",
    response_class=Response,
    responses=_TAR,
)
async def get_archive(request: Request, artifact_id: str, call: Caller) -> Response:
    """A tar of all files, made while it is sent; the same artifact gives the same bytes."""
    archive: Archive = await run_in_threadpool(_archive, call, _valid(artifact_id))
    headers = {
        "ETag": archive.etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition(f"{artifact_id}.tar"),
    }
    if matches(request.headers.get("if-none-match", ""), archive.etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(archive.size)
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/x-tar")
    content = iterate_in_threadpool(archive.read(call.blobs))
    return StreamingResponse(content, headers=headers, media_type="application/x-tar")


def _valid(artifact_id: str) -> str:
    return valid_id(artifact_id, ids.ARTIFACT, ArtifactNotFound)


def _file(call: Call, artifact_id: str, path: str) -> FileEntry:
    with call.read() as session:
        # NUL cannot be looked up in every database, and no stored name has it.
        if "\x00" in path:
            Artifacts(session, call.tenant).get(artifact_id)
            raise FileNotFound("no file has such a name")
        return service.file(session, call.tenant, artifact_id, path)


def _archive(call: Call, artifact_id: str) -> Archive:
    with call.read() as session:
        return service.archive(session, call.tenant, artifact_id)

"""/v1/keys"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from service import ids
from service.auth import Caller, Creator
from service.bodies import JsonBody, json_body, parse_body
from service.errors import KeyNotFound
from service.idempotency import carry_out, in_flight, json_fingerprint
from service.keys import service
from service.keys.repository import Keys
from service.keys.schemas import KeyCreate, KeyCreated, KeyList, KeyRead
from service.paging import Pages, answers, page_response, takes, valid_id

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post(
    "",
    operation_id="createKey",
    summary="Make an API key",
    status_code=201,
    responses=answers(KeyCreated, 201),
    openapi_extra=takes("KeyCreate", example={"name": "ci", "expires_in": 7776000}),
)
def create_key(request: Request, call: Creator, body: Annotated[JsonBody, Depends(json_body)]) -> Response:
    """The secret is in this answer and nowhere else."""
    wanted = parse_body(KeyCreate, body.data)
    with in_flight(request).hold(call):
        fingerprint = json_fingerprint(request, body.raw)
        answer = carry_out(call, fingerprint, lambda session: service.create(session, call, wanted))
    return answer.response(Location=f"/v1/keys/{answer.body['id']}", Cache_Control="no-store")


@router.get("", operation_id="listKeys", summary="List API keys", responses=answers(KeyList))
def list_keys(call: Caller, pages: Pages) -> Response:
    """Newest first, revoked and expired ones included."""
    with call.read() as session:
        page = Keys(session, call.tenant).list(after=pages.behind(ids.KEY), limit=pages.limit)
        return page_response(page.map(service.describe))


@router.get("/{key_id}", operation_id="getKey", summary="Read an API key", responses=answers(KeyRead))
def get_key(key_id: str, call: Caller) -> Response:
    """Everything but the secret."""
    with call.read() as session:
        return JSONResponse(
            service.describe(Keys(session, call.tenant).get(valid_id(key_id, ids.KEY, KeyNotFound)))
        )


@router.delete("/{key_id}", operation_id="revokeKey", summary="Revoke an API key", status_code=204)
def revoke_key(request: Request, key_id: str, call: Caller) -> Response:
    """It is refused from now on."""
    with call.write() as session:
        Keys(session, call.tenant).revoke(valid_id(key_id, ids.KEY, KeyNotFound))
    request.app.state.doorkeeper.forget()
    return Response(status_code=204)

"""RFC 9457 problem documents: the only place that knows how an error looks on the wire.

Every answer with status >= 400 is rendered here: the service's own errors, the framework's (404, 405,
malformed requests) and anything unforeseen, of which the caller learns a request id and nothing else.
Errors that only HTTP knows:

```
InvalidRequest (service.errors)
├── JsonInvalid                   400 json_invalid
├── FormInvalid                   400 form_invalid
└── ParameterUnknown              400 parameter_unknown
Unprocessable (service.errors)
├── BodyInvalid                   422 body_invalid
└── NameInvalid                   422 name_invalid
ServiceError (service.errors)
└── MethodNotAllowed              405 method_not_allowed
```
"""

from __future__ import annotations

import http
import json
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from compression import errors as compression_errors
from compression.errors import CompressionError, SpecificationInvalid
from service.errors import (
    DatasetRejected,
    Fault,
    InvalidParameter,
    InvalidRequest,
    ModelRejected,
    ServiceError,
    SpecificationRejected,
    Unprocessable,
)

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "/docs#problem-"

log = structlog.get_logger("service.problems")


class JsonInvalid(InvalidRequest):
    """The body is no JSON, is nested too deeply or names a key twice."""

    code, title = "json_invalid", "The body is not valid JSON"


class FormInvalid(InvalidRequest):
    """The multipart body is malformed, or has fields this call does not take."""

    code, title = "form_invalid", "The form is invalid"


class ParameterUnknown(InvalidRequest):
    """The query string has a parameter that this call does not take."""

    code, title = "parameter_unknown", "Unknown query parameter"


class MethodNotAllowed(ServiceError):
    """The path exists, and does not take this method; `Allow` lists those it takes."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class BodyInvalid(Unprocessable):
    """The JSON body has unknown keys or values of the wrong kind; `errors` names them."""

    code, title = "body_invalid", "The body is invalid"


class NameInvalid(Unprocessable):
    """A name or a file path that cannot be kept on every system."""

    code, title = "name_invalid", "A name is invalid"


def document(
    status: int, code: str, title: str, detail: str, request_id: str, faults: Iterable[Fault] = ()
) -> dict[str, Any]:
    """The members of a problem document; `errors` is left out when there are none."""
    body: dict[str, Any] = {
        "type": TYPE_BASE + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    errors = [{"pointer": fault.pointer, "message": fault.message, "code": fault.code} for fault in faults]
    if errors:
        body["errors"] = errors
    return body


def request_id_of(request: Request) -> str:
    """The id of this request, which is also in its `X-Request-Id` header."""
    return str(getattr(request.state, "request_id", ""))


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    faults: Iterable[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem answer; never cached."""
    body = document(status, code, title, detail, request_id_of(request), faults)
    return Response(
        json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def render(request: Request, error: ServiceError) -> Response:
    """The answer to an error of the service."""
    detail = error.detail
    if error.status == 500:
        log_failure("request_failed", error, request_id=request_id_of(request), code=error.code)
        detail = error.title
    return problem(
        request, error.status, error.code, error.title, detail, faults=error.errors, headers=error.headers
    )


def log_failure(event: str, error: BaseException, **facts: str) -> None:
    """Log an error with a plain traceback: other renderings print variables, and with them secrets."""
    log.error(event, **facts, traceback="".join(traceback.format_exception(error)))


def unexpected(request: Request) -> Response:
    """The answer to anything unforeseen: says that it happened and under which id the log has it."""
    return problem(
        request, 500, "internal", "Internal error", "Something went wrong on our side; it was logged."
    )


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return render(request, error)


def title_of(kind: type[CompressionError]) -> str:
    """The title of the problem that an error of the engine's checks becomes."""
    if issubclass(kind, compression_errors.ModelRejected):
        return ModelRejected.title
    if issubclass(kind, compression_errors.DatasetInvalid):
        return DatasetRejected.title
    if issubclass(kind, SpecificationInvalid):
        return SpecificationRejected.title
    return Unprocessable.title


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CompressionError)
    faults = []
    if isinstance(error, SpecificationInvalid):
        faults = [Fault(fault.pointer, fault.message, fault.code) for fault in error.errors]
    elif error.pointer is not None:
        faults = [Fault(error.pointer, error.message, error.code)]
    return problem(request, 422, error.code, title_of(type(error)), error.message, faults=faults)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = http.HTTPStatus(error.status_code).phrase
    headers = dict(error.headers or {})
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}; /docs lists every call."
    elif error.status_code == 405:
        # The framework names the methods of one route only; several may share the path.
        methods = ", ".join(request.app.state.methods_at(request.url.path))
        detail = f"{request.method} is not possible here; allowed: {methods}."
        return render(request, MethodNotAllowed(detail, headers={"Allow": methods}))
    else:
        detail = str(error.detail)
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    return problem(request, error.status_code, code, phrase, detail, headers=headers)


def _invalid_parameters(error: RequestValidationError) -> InvalidParameter:
    faults = []
    for fault in error.errors():
        where = [str(part) for part in fault["loc"]]
        faults.append(Fault("/" + "/".join(where), str(fault["msg"]), str(fault["type"])))
    named = "; ".join(f"{fault.pointer.rsplit('/', 1)[-1]}: {fault.message}" for fault in faults)
    return InvalidParameter(named, errors=faults)


async def _parameters_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return render(request, _invalid_parameters(error))


async def _client_gone(request: Request, error: Exception) -> Response:
    # Nobody reads this answer; it keeps a cut connection from being logged as a failure of ours.
    return problem(request, 400, "client_disconnected", "Client disconnected", "The body ended too early.")


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document (telemetry.Telemetry answers the unforeseen ones)."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(CompressionError, _engine_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _parameters_invalid)
    app.add_exception_handler(ClientDisconnect, _client_gone)

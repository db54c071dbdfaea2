"""What can go wrong between a program and a Secateur service.

    SecateurError
    ├── InputInvalid               a local file, folder or argument is not usable; nothing was sent
    ├── ServiceUnreachable         no answer after all attempts (refused, no route, time-out, closed)
    ├── AnswerNotUnderstood        something answered, but not a Secateur service
    ├── TransferCorrupted          bytes arrived, but not the bytes that were announced
    ├── ApiError                   the service answered with a problem document
    │   ├── InvalidRequest         400, 422: the specification, a file or an argument is wrong
    │   ├── NotAuthenticated       401
    │   ├── NotAllowed             403
    │   ├── NotFound               404, 410
    │   ├── Conflict               409
    │   ├── TooLarge               413
    │   ├── RateLimited            429, after all attempts
    │   └── ServiceFailure         5xx, after all attempts
    ├── ModelRejected              the service took the files but refused the model
    ├── JobFailed                  the job ended in state `failed`
    ├── JobCancelled               the job ended in state `cancelled`
    ├── WaitTimeout                the job did not end within the time given
    └── RoleUnavailable            this installation lacks the packages of a server role

The text of every error is ready to be shown in a terminal: one sentence, then one line for each single fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.types import Job


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: `pointer` is a JSON pointer into what was sent (may be empty)."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.message}" if self.pointer else self.message


class SecateurError(Exception):
    """Base of every error raised by this package."""


class InputInvalid(SecateurError):
    """A local file, folder or argument cannot be used; nothing was sent."""


class ServiceUnreachable(SecateurError):
    """No answer from the service after all attempts."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"No answer from the Secateur service at {url}: {reason}")
        self.url = url
        self.reason = reason


class AnswerNotUnderstood(SecateurError):
    """Something answered at the address, but not the way a Secateur service does."""


class TransferCorrupted(SecateurError):
    """The bytes that arrived are not the bytes that were announced."""


class RoleUnavailable(SecateurError):
    """The packages of a server role are not installed here."""


class ApiError(SecateurError):
    """The service answered with a problem document (RFC 9457).

    Attributes: `status` (HTTP), `code` (stable, for programs), `title`, `detail`, `errors` (each fault with
    its JSON pointer), `request_id` (what the service's log calls this request), `raw` (the whole document).
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Fault] = (),
        *,
        title: str = "",
        request_id: str | None = None,
        raw: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.raw = dict(raw or {})
        super().__init__(self._text())

    def _text(self) -> str:
        head = self.detail or self.title or f"The service answered with status {self.status}."
        lines = [f"{head} ({self.status} {self.code})"]
        lines += [f"  - {fault}" for fault in self.errors if str(fault) != self.detail]
        if self.status >= 500 and self.request_id:
            lines.append(f"  request id: {self.request_id}")
        return "\n".join(lines)


class InvalidRequest(ApiError):
    """The specification, a file or an argument is wrong (400, 422)."""


class NotAuthenticated(ApiError):
    """The service wants an API key, or does not know this one (401)."""


class NotAllowed(ApiError):
    """The key is known, but may not do this (403)."""


class NotFound(ApiError):
    """There is nothing with this id (404, 410)."""


class Conflict(ApiError):
    """The request contradicts the state of the resource (409)."""


class TooLarge(ApiError):
    """The body is larger than the service takes (413)."""


class RateLimited(ApiError):
    """Too many requests, also after waiting (429)."""


class ServiceFailure(ApiError):
    """The service itself failed (5xx)."""


class ModelRejected(SecateurError):
    """The service stored the files but refused the model."""

    def __init__(self, model_id: str, code: str, message: str) -> None:
        super().__init__(f"Model {model_id} was rejected: {message} ({code})")
        self.model_id = model_id
        self.code = code
        self.message = message


class JobFailed(SecateurError):
    """The job ended in state `failed`; `job.error` says why."""

    def __init__(self, job: Job) -> None:
        code = job.error.code if job.error else "unknown"
        message = job.error.message if job.error else "no reason was recorded"
        stage = f" in stage {job.stage}" if job.stage else ""
        super().__init__(f"Job {job.id} failed{stage}: {message} ({code})")
        self.job = job


class JobCancelled(SecateurError):
    """The job ended in state `cancelled`."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} was cancelled.")
        self.job = job


class WaitTimeout(SecateurError):
    """The job was still not finished when the time given was over."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(
            f"Job {job.id} is still {job.state} after {seconds:g} s; it goes on without this client."
        )
        self.job = job


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
}


def error_class(status: int) -> type[ApiError]:
    """The class of error for an HTTP status of 400 or more."""
    if status >= 500:
        return ServiceFailure
    return _BY_STATUS.get(status, ApiError)


def api_error(status: int, document: Mapping[str, Any]) -> ApiError:
    """Turn a problem document into the error to raise. Missing members get plain stand-ins."""
    faults = [
        Fault(str(item.get("pointer") or ""), str(item.get("message") or ""))
        for item in document.get("errors") or []
        if isinstance(item, Mapping)
    ]
    request_id = document.get("request_id")
    return error_class(status)(
        status,
        str(document.get("code") or "unknown"),
        str(document.get("detail") or ""),
        faults,
        title=str(document.get("title") or ""),
        request_id=str(request_id) if request_id else None,
        raw=document,
    )

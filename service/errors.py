"""Errors of the service: classes that name the fact, each with a stable `code`, an HTTP status and a title.

```
ServiceError                      500 internal
├── InvalidRequest                400 invalid_request
│   ├── InvalidParameter          400 invalid_parameter
│   └── IdempotencyKeyInvalid     400 idempotency_key_invalid
├── Unauthenticated               401 unauthenticated
├── Forbidden                     403 forbidden
├── NotFound                      404 not_found
│   ├── ModelNotFound             404 model_not_found
│   ├── DatasetNotFound           404 dataset_not_found
│   ├── UploadNotFound            404 upload_not_found
│   ├── JobNotFound               404 job_not_found
│   ├── ArtifactNotFound          404 artifact_not_found
│   ├── FileNotFound              404 file_not_found
│   ├── ReportNotFound            404 report_not_found
│   ├── RecipeNotFound            404 recipe_not_found
│   └── KeyNotFound               404 key_not_found
├── Conflict                      409 conflict
│   ├── ModelInUse                409 model_in_use
│   ├── ModelNotReady             409 model_not_ready
│   ├── DatasetInUse              409 dataset_in_use
│   ├── JobFinished               409 job_finished
│   ├── JobNotFinished            409 job_not_finished
│   ├── UploadClosed              409 upload_closed
│   ├── UploadIncomplete          409 upload_incomplete
│   └── RequestInProgress         409 request_in_progress
├── UploadExpired                 410 upload_expired
├── TooLarge                      413 too_large
├── UnsupportedMedia              415 unsupported_media
├── RangeInvalid                  416 range_invalid
├── Unprocessable                 422 unprocessable
│   ├── SpecificationRejected     422 specification_invalid
│   ├── ModelRejected             422 model_rejected
│   ├── DatasetRejected           422 dataset_rejected
│   ├── DigestMismatch            422 digest_mismatch
│   ├── PartInvalid               422 part_invalid
│   └── IdempotencyKeyReused      422 idempotency_key_reused
├── TooManyRequests               429 too_many_requests
├── Unavailable                   503 unavailable
│   └── DatabaseUnavailable       503 database_unavailable
├── StorageFull                   507 storage_full
├── BlobMissing                   500 blob_missing
├── BlobCorrupt                   500 blob_corrupt
├── IllegalTransition             500 illegal_transition
└── LeaseLost                     no HTTP status: a worker was fenced off
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the input: where (a JSON pointer), what, and a stable code."""

    pointer: str
    message: str
    code: str = "invalid"


class ServiceError(Exception):
    """Base of all errors of the service.

    Args:
        detail: what is wrong in this case, for the person who reads it; no absolute paths, no secrets.
        errors: the single faults, when there are several.
        headers: HTTP headers that belong to the answer, such as `Retry-After`.
    """

    code: str = "internal"
    status: int = 500
    title: str = "Internal error"

    def __init__(
        self, detail: str = "", *, errors: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class InvalidRequest(ServiceError):
    """The request is malformed."""

    code, status, title = "invalid_request", 400, "The request is malformed"


class InvalidParameter(InvalidRequest):
    """A query parameter or header has a value that cannot be used."""

    code, title = "invalid_parameter", "A parameter is invalid"


class IdempotencyKeyInvalid(InvalidRequest):
    """The Idempotency-Key header is empty, too long or has forbidden characters."""

    code, title = "idempotency_key_invalid", "The idempotency key is invalid"


class Unauthenticated(ServiceError):
    """No API key, or one that is unknown, expired or revoked."""

    code, status, title = "unauthenticated", 401, "A valid API key is required"


class Forbidden(ServiceError):
    """The caller is known and may not do this."""

    code, status, title = "forbidden", 403, "Not allowed"


class NotFound(ServiceError):
    """There is no such thing, or it belongs to another tenant."""

    code, status, title = "not_found", 404, "Not found"


class ModelNotFound(NotFound):
    """No such model."""

    code, title = "model_not_found", "No such model"


class DatasetNotFound(NotFound):
    """No such dataset."""

    code, title = "dataset_not_found", "No such dataset"


class UploadNotFound(NotFound):
    """No such upload."""

    code, title = "upload_not_found", "No such upload"


class JobNotFound(NotFound):
    """No such job."""

    code, title = "job_not_found", "No such job"


class ArtifactNotFound(NotFound):
    """No such artifact."""

    code, title = "artifact_not_found", "No such artifact"


class FileNotFound(NotFound):
    """The model, dataset or artifact has no file of that path."""

    code, title = "file_not_found", "No such file"


class ReportNotFound(NotFound):
    """The job has no report, because it did not succeed."""

    code, title = "report_not_found", "No report"


class RecipeNotFound(NotFound):
    """No such recipe."""

    code, title = "recipe_not_found", "No such recipe"


class KeyNotFound(NotFound):
    """No such API key."""

    code, title = "key_not_found", "No such API key"


class Conflict(ServiceError):
    """The state of the thing does not allow this."""

    code, status, title = "conflict", 409, "The current state does not allow this"


class ModelInUse(Conflict):
    """A queued or running job needs the model."""

    code, title = "model_in_use", "The model is in use"


class ModelNotReady(Conflict):
    """The model is still being imported, or was rejected."""

    code, title = "model_not_ready", "The model is not ready"


class DatasetInUse(Conflict):
    """A queued or running job needs the dataset."""

    code, title = "dataset_in_use", "The dataset is in use"


class JobFinished(Conflict):
    """The job has ended; terminal states never change."""

    code, title = "job_finished", "The job has already finished"


class JobNotFinished(Conflict):
    """The job has not ended yet."""

    code, title = "job_not_finished", "The job has not finished"


class UploadClosed(Conflict):
    """The upload was completed or aborted and takes no more parts."""

    code, title = "upload_closed", "The upload is closed"


class UploadIncomplete(Conflict):
    """Parts are missing."""

    code, title = "upload_incomplete", "Parts of the upload are missing"


class RequestInProgress(Conflict):
    """The first request with this idempotency key is still being answered."""

    code, title = "request_in_progress", "The first request with this key is still running"


class UploadExpired(ServiceError):
    """The upload was not completed in time."""

    code, status, title = "upload_expired", 410, "The upload has expired"


class TooLarge(ServiceError):
    """The body or the declared size is over a limit."""

    code, status, title = "too_large", 413, "Too large"


class UnsupportedMedia(ServiceError):
    """The content type is not one this call takes."""

    code, status, title = "unsupported_media", 415, "Unsupported content type"


class RangeInvalid(ServiceError):
    """The requested byte range lies outside the file."""

    code, status, title = "range_invalid", 416, "The range cannot be satisfied"


class Unprocessable(ServiceError):
    """The request is well-formed and cannot be carried out."""

    code, status, title = "unprocessable", 422, "The request cannot be carried out"


class SpecificationRejected(Unprocessable):
    """The job specification has faults; `errors` names them."""

    code, title = "specification_invalid", "The specification is invalid"


class ModelRejected(Unprocessable):
    """The uploaded files are no model that can be compressed."""

    code, title = "model_rejected", "The model was rejected"


class DatasetRejected(Unprocessable):
    """The uploaded file is no dataset that can be used."""

    code, title = "dataset_rejected", "The dataset was rejected"


class DigestMismatch(Unprocessable):
    """The bytes received do not have the digest or the size that was announced."""

    code, title = "digest_mismatch", "The content does not match its digest"


class PartInvalid(Unprocessable):
    """No such part number, or a part of the wrong size."""

    code, title = "part_invalid", "The part is invalid"


class IdempotencyKeyReused(Unprocessable):
    """The idempotency key came before with another request."""

    code, title = "idempotency_key_reused", "The idempotency key was used for another request"


class TooManyRequests(ServiceError):
    """A rate or a quota is exceeded."""

    code, status, title = "too_many_requests", 429, "Too many requests"


class Unavailable(ServiceError):
    """Something the service needs does not answer; trying again later may help."""

    code, status, title = "unavailable", 503, "Temporarily unavailable"


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or stayed locked for too long."""

    code, title = "database_unavailable", "The database is unavailable"


class StorageFull(ServiceError):
    """No space is left for blobs or for the database; nothing was stored."""

    code, status, title = "storage_full", 507, "No space left"


class BlobMissing(ServiceError):
    """A stored file that a row refers to is gone."""

    code, title = "blob_missing", "A stored file is missing"


class BlobCorrupt(ServiceError):
    """A stored file no longer has the digest of its name."""

    code, title = "blob_corrupt", "A stored file is corrupt"


class IllegalTransition(ServiceError):
    """The state machine of jobs has no such change. Reaching this is a defect of the service."""

    code, title = "illegal_transition", "Illegal change of a job's state"


class LeaseLost(ServiceError):
    """The worker was fenced off: the job has another epoch or state by now, and nothing was written."""

    code, title = "lease_lost", "The lease of the job is lost"

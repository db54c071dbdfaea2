"""The client of Secateur, model compression as a service.

    from secateur import Client

Configured by `SECATEUR_URL` and `SECATEUR_API_KEY`, or by arguments.
"""

from __future__ import annotations

from secateur.client import Client
from secateur.connection import Attempts
from secateur.errors import (
    AnswerNotUnderstood,
    ApiError,
    Conflict,
    Fault,
    InputInvalid,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    ModelRejected,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    SecateurError,
    ServiceFailure,
    ServiceUnreachable,
    TooLarge,
    TransferCorrupted,
    WaitTimeout,
)
from secateur.types import Artifact, Dataset, Event, File, Job, Model, Problem, Progress, Recipe
from secateur.version import VERSION as __version__

__all__ = [
    "AnswerNotUnderstood",
    "ApiError",
    "Artifact",
    "Attempts",
    "Client",
    "Conflict",
    "Dataset",
    "Event",
    "Fault",
    "File",
    "InputInvalid",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobFailed",
    "Model",
    "ModelRejected",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "Problem",
    "Progress",
    "RateLimited",
    "Recipe",
    "SecateurError",
    "ServiceFailure",
    "ServiceUnreachable",
    "TooLarge",
    "TransferCorrupted",
    "WaitTimeout",
    "__version__",
]

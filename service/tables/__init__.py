"""The tables, one file each. Importing this package registers all of them on `Base.metadata`."""

from __future__ import annotations

from service.tables.api_keys import ApiKey
from service.tables.artifacts import Artifact
from service.tables.base import Base
from service.tables.datasets import Dataset
from service.tables.files import File
from service.tables.idempotency_keys import IdempotencyKey
from service.tables.job_events import EVENT_TYPES, JobEvent
from service.tables.jobs import Job
from service.tables.layer_times import LayerTimes
from service.tables.models import MODEL_STATUSES, Model
from service.tables.tenants import DEFAULT_TENANT, Tenant
from service.tables.upload_parts import UploadPart
from service.tables.uploads import UPLOAD_STATUSES, Upload

__all__ = [
    "DEFAULT_TENANT",
    "EVENT_TYPES",
    "MODEL_STATUSES",
    "UPLOAD_STATUSES",
    "ApiKey",
    "Artifact",
    "Base",
    "Dataset",
    "File",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "LayerTimes",
    "Model",
    "Tenant",
    "Upload",
    "UploadPart",
]

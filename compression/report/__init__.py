"""The report of a job: JSON with a versioned schema, and one self-contained HTML page. Free of torch."""

from __future__ import annotations

from compression.report.build import build
from compression.report.schema import SCHEMA, ReportInvalid, load_schema, validate
from compression.report.types import ReportInputs

__all__ = ["SCHEMA", "ReportInputs", "ReportInvalid", "build", "load_schema", "validate"]

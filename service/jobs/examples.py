"""Examples for the documentation of /v1/jobs; a test holds them against the schemas."""

from __future__ import annotations

from typing import Any

SPECIFICATION: dict[str, Any] = {
    "model": "mdl_06a1hqk3v2x5w8y9z0abcdefgh",
    "recipe": "wanda",
    "target": {"sparsity": 0.5},
    "structure": {"granularity": "2:4"},
    "calibration": {"dataset": "dst_06a1hqk3v2x5w8y9z0abcdefgh", "samples": 128},
    "recovery": {"method": "lora", "budget": {"steps": 200}},
    "metadata": {"team": "search"},
}

QUEUED: dict[str, Any] = {
    "id": "job_06a1hqk3v2x5w8y9z0abcdefgh",
    "state": "queued",
    "stage": None,
    "progress": None,
    "attempt": 0,
    "specification": SPECIFICATION,
    "error": None,
    "result": None,
    "metadata": {"team": "search"},
    "retry_of": None,
    "created_at": "2026-11-20T09:30:00.000000Z",
    "started_at": None,
    "finished_at": None,
    "cancel_requested_at": None,
}

SUCCEEDED: dict[str, Any] = {
    **QUEUED,
    "state": "succeeded",
    "stage": "verify",
    "progress": {"done": 1, "total": 1, "fraction": 1.0, "eta_seconds": 0.0},
    "attempt": 1,
    "result": {
        "summary": {"gates_passed": True},
        "artifact": "art_06a1hqk3v2x5w8y9z0abcdefgh",
        "report": "/v1/jobs/job_06a1hqk3v2x5w8y9z0abcdefgh/report",
    },
    "started_at": "2026-11-20T09:30:01.000000Z",
    "finished_at": "2026-11-20T09:34:12.000000Z",
}

EVENTS: dict[str, Any] = {
    "data": [
        {
            "sequence": 1,
            "type": "state",
            "data": {"state": "queued", "attempt": 0},
            "at": "2026-11-20T09:30:00.000000Z",
        }
    ],
    "has_more": False,
    "next": None,
}

"""A whole service on a file system of 48 MB, which is filled up under it.

Runs in a mount namespace of its own:

`unshare --mount --map-root-user sh -c 'mount -t tmpfs -o size=48m none HOME &&
exec python -m tests.faults.full_disk HOME FOLDER'`; prints what it saw as one JSON object.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from secateur import Client, errors
from tests.acceptance.service import start
from tests.tiny_models import tiny_llama

LEFT = 256 << 10
"""Bytes left free: enough for rows in the database, too few for a model."""


def fill(ballast: Path) -> None:
    """Take all space but `LEFT`."""
    with ballast.open("wb") as file:
        status = os.statvfs(ballast.parent)
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - LEFT)


def specification(model: str, dataset: str) -> dict[str, Any]:
    size = {"samples": 4, "sequence_length": 32}
    return {
        "model": model,
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": dataset, **size},
        "evaluation": {"dataset": dataset, **size, "measure": []},
    }


def attempt(action: Any) -> str:
    """The code of the problem that an action ends with."""
    try:
        action()
    except errors.SecateurError as error:
        return str(getattr(error, "code", type(error).__name__))
    return "done"


def wait(client: Client, job: str, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := client.job(job)).finished and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def scenario(client: Client, home: Path, folder: Path) -> dict[str, Any]:
    text = folder / "text.jsonl"
    rows = [{"text": f"the quick brown fox number {n} jumps over the lazy dog " * 4} for n in range(60)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = client.upload_model(tiny_llama(folder / "small"))
    dataset = client.upload_dataset(text)
    wish = specification(model.id, dataset.id)
    seen: dict[str, Any] = {"before": wait(client, client.submit(wish).id).state}
    large = tiny_llama(folder / "large", hidden=256, ffn=512)
    fill(home / "ballast")
    seen["upload"] = attempt(lambda: client.upload_model(large))
    seen["read"] = attempt(lambda: client.model(model.id))
    waiting = client.submit(wish).id
    seen["full"] = wait(client, waiting, 15.0).state
    (home / "ballast").unlink()
    seen["job"] = wait(client, waiting).state
    seen["after"] = wait(client, client.submit(wish).id).state
    seen["uploaded"] = attempt(lambda: client.upload_model(large))
    return seen


def main(home: Path, folder: Path) -> None:
    running = start(home)
    with Client(running.url, state_folder=folder / "state") as client:
        seen = scenario(client, home, folder)
    seen["status"] = running.stop()
    seen["log"] = running.log.read_text(errors="replace")[-6000:]
    with sqlite3.connect(home / "secateur.db") as database:
        seen["database"] = database.execute("PRAGMA integrity_check").fetchone()[0]
    seen["work"] = sorted(path.name for path in (home / "work").iterdir())
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

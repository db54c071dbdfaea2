"""What the service adds: time per job, polling rate while a job runs, start-up, memory of an upload."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from secateur import Client
from tests import tiny_models
from tests.bench.common import ROOT, service, table, write

# What the embedded service gives a runner, so that both sides compute alike.
THREADS = os.cpu_count() or 1


def job_seconds(client: Client, specification: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Wall time of one job on an idle service, from POST to the terminal state, and the job."""
    begun = time.monotonic()
    job = client.wait(client.submit(specification).id)
    if job.state != "succeeded":
        sys.exit(f"the job failed: {job.raw['error']}")
    return time.monotonic() - begun, job.raw


def engine_seconds(model: Path, text: Path, resolved: dict[str, Any]) -> float:
    """Wall time of the same specification by the engine alone, in a process of its own (imports included)."""
    with tempfile.TemporaryDirectory() as work:
        specification = Path(work) / "specification.json"
        specification.write_text(json.dumps(resolved))
        dataset = resolved["calibration"]["dataset"]
        begun = time.monotonic()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "compression",
                "run",
                "--model",
                str(model),
                "--spec",
                str(specification),
                "--dataset",
                f"{dataset}={text}",
                "--work",
                f"{work}/work",
                "--threads",
                str(THREADS),
            ],
            # What a runner's environment says too: else the engine verifies in another interpreter.
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(THREADS),
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - begun


async def polls(url: str, path: str, seconds: float, connections: int) -> float:
    """Requests per second of keep-alive connections that ask for the same job again and again."""
    host, port = url.removeprefix("http://").split(":")
    count = 0
    end = time.monotonic() + seconds

    async def one() -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection(host, int(port.strip("/")))
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        while time.monotonic() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise SystemExit(head.decode())
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
            count += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return count / seconds


def gateway_process(up: int) -> psutil.Process:
    """The uvicorn child of the embedded service."""
    for child in psutil.Process(up).children(recursive=True):
        if "gateway" in " ".join(child.cmdline()) or "uvicorn" in " ".join(child.cmdline()):
            return child
    sys.exit("no gateway process found")


def upload_growth(client: Client, gateway: psutil.Process, scratch: Path, size: int) -> float:
    """By how many MB the gateway's resident memory rises at most while `size` bytes come in parts."""
    big = scratch / "big"
    big.mkdir()
    with (big / "data.txt").open("wb") as file:
        line = (b"word " * 200 + b"\n\n") * 1024
        while file.tell() < size:
            file.write(line)
    before = gateway.memory_info().rss
    highest = before
    done = False

    def watch() -> None:
        nonlocal highest
        while not done:
            highest = max(highest, gateway.memory_info().rss)
            time.sleep(0.05)

    import threading

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.upload_dataset(big / "data.txt")
    finally:
        done = True
        watcher.join()
    return (highest - before) / 1e6


def startup_seconds() -> float:
    """From exec of the gateway to the first answered /livez, on an empty home; median of five."""
    seconds = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "SECATEUR_HOME": home, "SECATEUR_AUTH": "off"}
            subprocess.run(
                [sys.executable, "-m", "service", "migrate"],
                check=True,
                env=environment,
                cwd=ROOT,
                capture_output=True,
            )
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "gateway", "--port", "8765"],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            import httpx2

            while True:
                try:
                    httpx2.get("http://127.0.0.1:8765/livez")
                    break
                except httpx2.TransportError:
                    time.sleep(0.02)
            seconds.append(time.monotonic() - begun)
            process.terminate()
            process.wait()
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--upload-bytes", type=int, default=2_000_000_000)
    arguments = parser.parse_args()
    rows: list[list[Any]] = [["gateway start to first answer, s (limit 2)", startup_seconds()]]
    with service() as running, tempfile.TemporaryDirectory() as folder, Client(running["url"]) as client:
        scratch = Path(folder)
        model_folder = tiny_models.tiny_llama(scratch / "model")
        text = scratch / "text.txt"
        text.write_text(
            "\n\n".join(
                f"The {n} gardeners cut {n * 7} branches before noon and counted them." for n in range(2000)
            )
        )
        model, dataset = client.upload_model(model_folder).id, client.upload_dataset(text).id
        specification = {
            "model": model,
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": dataset, "samples": 8, "sequence_length": 64},
            # Latency is measured for as long as it is noisy, which would drown what is looked for here.
            "evaluation": {"measure": []},
        }
        walls, engines = [], []
        for _ in range(arguments.repeats):  # interleaved, so that both see the same noise
            wall, job = job_seconds(client, specification)
            walls.append(wall)
            engines.append(engine_seconds(model_folder, text, job["specification"]))
        rows += [
            ["job wall time, median s", statistics.median(walls)],
            ["engine alone, median s", statistics.median(engines)],
            [
                "overhead of the service, median s (limit 3)",
                statistics.median(w - e for w, e in zip(walls, engines, strict=True)),
            ],
        ]
        gateway = gateway_process(running["process"].pid)
        gateway.cpu_affinity([0])
        os.sched_setaffinity(0, {1})
        slow = {**specification, "recovery": {"method": "lora", "budget": {"steps": 400}}}
        job_id = client.submit(slow).id
        while client.job(job_id).state == "queued":
            time.sleep(0.2)
        rate = asyncio.run(polls(running["url"], f"/v1/jobs/{job_id}", 5, 8))
        still = client.job(job_id).state
        rows.append([f"status polls per second, gateway on one core, job {still} (at least 300)", rate])
        client.cancel(job_id)
        growth = upload_growth(client, gateway, scratch, arguments.upload_bytes)
        rows.append(
            [
                f"gateway memory during a {arguments.upload_bytes / 1e9:.1f} GB upload, MB more (limit 64)",
                growth,
            ]
        )
    write(
        "overhead",
        "What the service adds to the engine",
        "script/bench overhead",
        table(["what", "measured"], rows),
    )


if __name__ == "__main__":
    main()

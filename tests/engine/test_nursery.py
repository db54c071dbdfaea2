"""Forks of a clean process answer as new interpreters do, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compression.evaluation import nursery, probe, stock
from compression.export import verify
from tests.engine.jobs import write_job
from tests.tiny_models import tiny_llama

# Another number of threads than whole jobs of other tests use: a nursery of its own.
THREADS = 3


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "model")
    batch = {"input_ids": torch.arange(3, 21).reshape(2, 9)}
    with torch.no_grad():
        outputs = [stock.answer(stock.load(folder, "text-generation"), batch, "text-generation")]
    return folder, probe.write_inputs(folder.parent / "e.safetensors", [batch], outputs, "text-generation")


def test_a_fork_says_what_a_new_interpreter_says(expected: tuple[Path, Path]) -> None:
    found = [verify.run(*expected, threads=THREADS, interpreter=fresh) for fresh in (False, True, False)]
    for one in found:
        for timed in ("load_seconds", "memory"):
            one.pop(timed)
    assert found[0] == found[1] == found[2]
    assert found[0]["ok"]


def test_what_goes_wrong_in_a_fork_is_told(tmp_path: Path) -> None:
    for fresh in (False, True):
        with pytest.raises(probe.ChildFailed, match=r"nothing\.safetensors"):
            probe.child(
                "compression.export.verify",
                [str(tmp_path), str(tmp_path / "nothing.safetensors")],
                threads=THREADS,
                interpreter=fresh,
            )


def test_a_killed_nursery_is_replaced(expected: tuple[Path, Path]) -> None:
    assert verify.run(*expected, threads=THREADS, interpreter=False)["ok"]
    first = nursery._known[os.getpid(), THREADS].pid
    os.kill(first, signal.SIGKILL)
    assert verify.run(*expected, threads=THREADS, interpreter=False)["ok"]
    assert (os.getpid(), THREADS) not in nursery._known
    assert verify.run(*expected, threads=THREADS, interpreter=False)["ok"]
    assert nursery._known[os.getpid(), THREADS].pid != first


FORKS = """
import json, os, sys
from compression.evaluation import nursery, probe
from compression.export import verify
from pathlib import Path
found = nursery.fork_off(1, probe.child_environment(1))
folder, expected = map(Path, sys.argv[1:3])
answers = [verify.run(folder, expected, threads=1, interpreter=fresh) for fresh in (False, False, True)]
assert nursery.nursery(1, os.environ) is found
other = nursery.fork_off(2, {**os.environ, "OMP_NUM_THREADS": "2"})
print(json.dumps([answers, found.pid, other is None]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")
def test_a_process_forks_its_own_nursery(expected: tuple[Path, Path]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FORKS, *map(str, expected)],
        env={**os.environ, **probe.child_environment(1)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers, pid, refused = json.loads(told.stdout)
    for one in answers:
        for timed in ("load_seconds", "memory"):
            one.pop(timed)
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["ok"]
    # Another number of threads than this process was started with takes an interpreter.
    assert refused
    assert not Path(f"/proc/{pid}").exists()


LIMITED = """
import dataclasses, sys
from pathlib import Path
from compression import pipeline
from compression.evaluation import nursery
from tests.engine.jobs import request
wanted = request(Path(sys.argv[1]), Path(sys.argv[1]) / "work")
if sys.argv[2] == "limited":
    specification = wanted.specification
    limits = specification.limits.model_copy(update={"memory_bytes": 1 << 33})
    wanted = dataclasses.replace(wanted, specification=specification.model_copy(update={"limits": limits}))
pipeline.fork_nursery(wanted)
print(len(nursery._known))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")
@pytest.mark.parametrize(("limit", "forks"), [("free", 1), ("limited", 0)])
def test_a_job_forks_unless_its_memory_is_limited(limit: str, forks: int, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    write_job(tmp_path, "model", {}, {"recipe": "magnitude", "target": {"sparsity": 0.5}})
    told = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), limit],
        env={**os.environ, **probe.child_environment(1)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert int(told.stdout) == forks


STARTS = """
import json, os, sys, time
from compression.evaluation import nursery
start = nursery.nursery if sys.argv[1] == "interpreter" else nursery.fork_off
found = start(1, os.environ)
print(json.dumps([os.getpid(), found.pid]), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent's death signal")
@pytest.mark.parametrize("way", ["interpreter", "fork"])
def test_it_dies_with_who_started_it(way: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTS, way], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, child = json.loads(parent.stdout.readline())
    assert pid == parent.pid
    os.kill(pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        try:
            state = Path(f"/proc/{child}/stat").read_text().split(") ")[1][0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process outlived the one that started it")

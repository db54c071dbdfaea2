"""The runner's walls, tried from inside by a real process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workers import kernel, processes, sandbox
from workers.sandbox import Policy

PRELUDE = """
import json, os, socket, sys, resource
from pathlib import Path
from workers import sandbox
def tried(action):
    try:
        return str(action())
    except BaseException as error:
        return type(error).__name__
arguments = json.loads(sys.argv[1])
exec(arguments.get("before", ""))
done = sandbox.apply(sandbox.Policy.from_json(arguments["policy"]))
"""

landlock = pytest.mark.skipif(not kernel.Landlock().available, reason="this kernel has no Landlock")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux only")


def inside(code: str, policy: Policy, **arguments: Any) -> Any:
    """What `code` leaves in `answer`, run in a process confined by the policy."""
    policy.work.mkdir(exist_ok=True)
    words = json.dumps({"policy": policy.to_json(), **arguments})
    done = subprocess.run(
        [sys.executable, "-P", "-c", PRELUDE + code + "\nprint(json.dumps(answer))", words],
        env=sandbox.runner_environment(policy.work, 1, {}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_secret_is_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_DATABASE_URL", "postgresql://user:hunter2@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    environment = sandbox.runner_environment(tmp_path, 3, {})
    assert not any("hunter2" in value for value in environment.values())
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == str(tmp_path)


@linux
@pytest.mark.parametrize(
    "before",
    [
        "",
        "from workers import kernel; kernel.drop_capabilities()",
        "from workers import kernel; kernel.prctl(38, 1); kernel.deny_syscalls(['unshare'])",
    ],
    ids=["as root may", "without capabilities", "where namespaces are forbidden"],
)
def test_no_network(tmp_path: Path, before: str) -> None:
    path = str(tmp_path / "s.sock")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(path)
        local.listen()
        code = """
def unix():
    client = socket.socket(socket.AF_UNIX)
    client.connect(arguments["path"])
answer = {
    "tcp": tried(lambda: socket.create_connection(("127.0.0.1", arguments["port"]), 2)),
    "unix": tried(unix), "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "pair": tried(lambda: len(socket.socketpair())), "denied": done.network_denied,
}"""
        answer = inside(
            code, Policy(tmp_path / "work"), port=server.getsockname()[1], path=path, before=before
        )
    assert answer["denied"]
    assert {answer["tcp"], answer["unix"], answer["udp"]} <= {"PermissionError", "OSError"}
    assert answer["pair"] == "2"


@linux
@landlock
def test_writes_only_into_the_work_folder(tmp_path: Path) -> None:
    code = """
work, outside = Path(arguments["work"]), Path(arguments["outside"])
answer = {
    "inside": tried(lambda: (work / "a").write_text("x")),
    "outside": tried(lambda: (outside / "a").write_text("x")),
    "over": tried(lambda: (outside / "old").write_text("x")),
    "delete": tried(lambda: (outside / "old").unlink()),
    "move": tried(lambda: os.rename(work / "a", outside / "a")),
    "device": tried(lambda: os.mknod(work / "d", 0o60600, 0)),
    "temporary": tried(lambda: Path("/tmp/secateur-probe").write_text("x")),
    "null": tried(lambda: Path("/dev/null").write_text("x")),
}"""
    (tmp_path / "old").write_text("old")
    answer = inside(code, Policy(tmp_path / "work"), work=str(tmp_path / "work"), outside=str(tmp_path))
    assert answer["inside"] == "1"
    assert answer["null"] == "1"
    refused = {name: answer[name] for name in ("outside", "over", "delete", "device", "temporary")}
    assert set(refused.values()) == {"PermissionError"}, refused
    assert answer["move"] in ("PermissionError", "OSError")
    assert (tmp_path / "old").read_text() == "old"


@linux
@landlock
def test_hidden_files_cannot_be_read_but_inputs_can(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "blobs").mkdir(parents=True)
    for name in ("secateur.db", "blobs/mine", "blobs/foreign"):
        (home / name).write_text(name)
    work = home / "work" / "job-1"
    (home / "work" / "job-2").mkdir(parents=True)
    (home / "work" / "job-2" / "x").write_text("x")
    code = """
home = Path(arguments["home"])
Path("/proc/self/environ").read_bytes()
answer = {name: tried((home / name).read_text) for name in
          ("secateur.db", "blobs/mine", "blobs/foreign", "work/job-2/x")}
answer["list"] = tried(lambda: os.listdir(home))
answer["parent"] = tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()[:0])
answer["python"] = tried(lambda: __import__("decimal").Decimal(1))
"""
    policy = Policy(work, hidden=(home,), readable=(home / "blobs" / "mine",))
    answer = inside(code, policy, home=str(home))
    assert answer.pop("blobs/mine") == "blobs/mine"
    assert answer.pop("python") == "1"
    assert set(answer.values()) == {"PermissionError"}, answer


@linux
def test_no_privileges_no_core_no_big_files_no_foreign_signals(tmp_path: Path) -> None:
    code = """
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
answer = {
    "capabilities": status["CapEff"].strip(), "bounding": status["CapBnd"].strip(),
    "quiet": status["NoNewPrivs"].strip(), "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "big": tried(lambda: (Path(arguments["work"]) / "big").write_bytes(bytes(2000))),
    "signal": tried(lambda: os.kill(arguments["pid"], 0)),
    "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
}"""
    policy = Policy(tmp_path / "work", file_bytes=1000, memory_bytes=1 << 30)
    answer = inside(code, policy, work=str(tmp_path / "work"), pid=os.getpid())
    assert int(answer["capabilities"], 16) == 0
    assert int(answer["bounding"], 16) == 0
    assert answer["quiet"] == "1"
    assert answer["core"] == 0
    assert answer["big"] == "OSError"
    assert answer["data"] == (1 << 30) + (1 << 28) + (1 << 30)
    if kernel.Landlock().version >= 6:
        assert answer["signal"] == "PermissionError"


@linux
def test_a_process_ends_with_its_parent() -> None:
    child = "import os, sys, time; from workers import sandbox; sandbox.die_with_parent(os.getppid()); " \
        "print(os.getpid(), flush=True); time.sleep(60)"  # fmt: skip
    parent = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert processes.start_time(pid) is not None
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 5
    while processes.start_time(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes.start_time(pid) is None


def test_a_late_child_of_a_dead_parent_does_not_start() -> None:
    code = "from workers import sandbox; sandbox.die_with_parent(1); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""


def test_everything_but_covers_the_rest_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("a/x", "a/hidden/y", "b/z", "b/secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "hidden")
    covered = set(sandbox.everything_but(tmp_path, [tmp_path / "a" / "hidden", tmp_path / "b" / "secret"]))
    assert covered == {tmp_path / "a" / "x", tmp_path / "b" / "z"}
    assert list(sandbox.everything_but(tmp_path, [])) == [tmp_path]
    assert list(sandbox.everything_but(tmp_path, [tmp_path])) == []


def test_policies_survive_json(tmp_path: Path) -> None:
    policy = Policy(
        tmp_path, hidden=(Path("/a"),), readable=(Path("/b"),), memory_bytes=7, scope_signals=False
    )
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@linux
def test_probe_says_what_is_in_force() -> None:
    found = sandbox.probe()
    assert found.network_denied
    assert "network" in found.describe()

"""The walls around a runner: it parses weights of strangers, so it gets no network, no secrets, one folder.

`apply` is called by the runner itself, before anything of the engine is imported, and says what is in force:
kernels and containers differ, and what cannot be had is reported (in the log and by ``doctor``), not hidden.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from workers import kernel

PARENT_VARIABLE: Final = "SECATEUR_SUPERVISOR"
"""In a runner's environment: the pid of the supervisor with which it must end."""

_MEMORY_SLACK: Final = 1 << 30
_DEVICE_FILES: Final = ("null", "zero", "full", "random", "urandom")
# Where credentials usually lie on the machine of a person or in a container.
_CREDENTIALS: Final = (
    "~/.ssh", "~/.aws", "~/.azure", "~/.gnupg", "~/.kube", "~/.docker", "~/.netrc", "~/.git-credentials",
    "~/.config", "~/.cache/huggingface", "~/.pypirc", "~/.npmrc", "/run/secrets", "/etc/shadow",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What one runner may do.

    ``work``: the one folder it may write. ``hidden``: files and folders it may not read (credentials are
    always among them). ``readable``: exceptions inside the hidden folders (its inputs). ``writable``: further
    places it may write. ``memory_bytes``: data limit in bytes or None. ``file_bytes``: largest file it may
    write. ``scope_signals``: it may signal only itself and its children.
    """

    work: Path
    hidden: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    memory_bytes: int | None = None
    file_bytes: int = 1 << 40
    scope_signals: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "work": str(self.work),
            "hidden": [str(path) for path in self.hidden],
            "readable": [str(path) for path in self.readable],
            "writable": [str(path) for path in self.writable],
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "scope_signals": self.scope_signals,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        return cls(
            work=Path(data["work"]),
            hidden=tuple(map(Path, data["hidden"])),
            readable=tuple(map(Path, data["readable"])),
            writable=tuple(map(Path, data["writable"])),
            memory_bytes=data["memory_bytes"],
            file_bytes=data["file_bytes"],
            scope_signals=data["scope_signals"],
        )


@dataclass(frozen=True)
class Confinement:
    """What is in force in a sandboxed process."""

    network: str
    files: str
    system_calls: str
    privileges: str

    def describe(self) -> str:
        """One line for logs and for ``doctor``."""
        return (
            f"network: {self.network}; files: {self.files}; "
            f"system calls: {self.system_calls}; privileges: {self.privileges}"
        )

    @property
    def network_denied(self) -> bool:
        return self.network != "open"

    @property
    def writes_denied(self) -> bool:
        return self.files != "open"


def apply(policy: Policy) -> Confinement:
    """Confine the calling process, which must still have a single thread; irreversible."""
    _prefer_as_victim()
    _limit(policy)
    namespace = _leave_network()
    quiet = kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    dropped = kernel.drop_capabilities()
    landlock = kernel.Landlock()
    fenced = landlock.available and landlock.restrict(
        _readable(policy), _writable(policy), scope_signals=policy.scope_signals
    )
    filtered = kernel.deny_syscalls()
    network = [name for name, there in (("own namespace", namespace), ("no sockets", filtered)) if there]
    privileges = [name for name, there in (("no new", quiet), ("no capabilities", dropped)) if there]
    return Confinement(
        network=" and ".join(network) or "open",
        files=f"work folder only (Landlock {landlock.version})" if fenced else "open",
        system_calls="filtered" if filtered else "open",
        privileges=", ".join(privileges) or "unchanged",
    )


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """End this process when ``parent`` (its pid) ends; exits at once when it is gone already."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def hide_environment() -> None:
    """Make this process's memory and environment unreadable to other processes of the same user."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def runner_environment(work: Path, threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a runner: an allow-list and fixed values, so no secret is in it."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "TZ")
        if name in os.environ
    }
    fixed = {
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    return {**kept, **fixed, **extra}


def probe() -> Confinement:
    """What `apply` achieves on this machine, found out in a throw-away process."""
    code = "import json, sys; from workers import sandbox; print(json.dumps(sandbox.probe_here(sys.argv[1])))"
    with tempfile.TemporaryDirectory(prefix="secateur-probe-") as folder:
        environment = runner_environment(Path(folder), 1, {})
        command = [sys.executable, "-P", "-c", code, folder]
        done = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
    return Confinement(**json.loads(done.stdout))


def probe_here(folder: str) -> dict[str, str]:
    """Apply a plain policy to this process and say what came of it (used by `probe`)."""
    return asdict(apply(Policy(work=Path(folder))))


def _prefer_as_victim() -> None:
    """Short of memory, the kernel shall end the runner and not the supervisor or the service."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def _limit(policy: Policy) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, policy.file_bytes)
    if policy.memory_bytes is not None:
        # The supervisor watches resident memory; this stops a burst that is faster than its look.
        _lower(resource.RLIMIT_DATA, policy.memory_bytes + policy.memory_bytes // 4 + _MEMORY_SLACK)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _leave_network() -> bool:
    if kernel.unshare(kernel.CLONE_NEWNET):
        return True
    user, group = os.getuid(), os.getgid()
    if not kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET):
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            continue
    return True


def _writable(policy: Policy) -> Iterator[Path]:
    yield policy.work
    yield from policy.writable
    devices = Path("/dev")
    yield from (devices / name for name in _DEVICE_FILES)
    yield from devices.glob("nvidia*")


def _readable(policy: Policy) -> Iterator[Path]:
    hidden = {path.expanduser().resolve() for path in (*policy.hidden, *map(Path, _CREDENTIALS))}
    yield from everything_but(Path("/"), {path for path in hidden if path.exists()})
    yield from policy.readable
    # What Python itself needs, should it lie inside a hidden folder.
    packages = Path(__file__).resolve().parent.parent
    yield from (packages / name for name in ("workers", "service", "compression"))
    yield from (
        Path(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path and Path(path) != packages
    )


def everything_but(folder: Path, hidden: Iterable[Path]) -> Iterator[Path]:
    """Paths that together cover all below ``folder`` but the hidden ones (Landlock can allow, not forbid)."""
    inside = [path for path in hidden if path == folder or folder in path.parents]
    if not inside:
        yield folder
        return
    if folder in inside:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        # What a link points to is covered under its own name, or hidden.
        if not entry.is_symlink():
            yield from everything_but(Path(entry.path), inside)

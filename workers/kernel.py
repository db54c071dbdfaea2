"""Thin typed doors to the Linux calls the sandbox needs; nothing here decides a policy.

Every function returns whether the kernel did it: an old kernel, a container profile or another operating
system refuses some of these, and the caller reports what is in force.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
LAST_CAPABILITY: Final = 63

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW, _RET_EPERM = 0x7FFF0000, 0x00050001
_CAPABILITY_VERSION_3 = 0x20080522

# name -> (x86_64, aarch64)
_SYSCALLS: Final[dict[str, tuple[int, int]]] = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_ARCHITECTURES: Final[dict[str, tuple[int, int]]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prctl(option: int, first: int = 0, second: int = 0) -> bool:
    """``prctl(option, first, second, 0, 0)``; false where it fails or does not exist."""
    libc = _libc()
    if libc is None:
        return False
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    return bool(libc.prctl(ctypes.c_int(option), *arguments) == 0)


def unshare(flags: int) -> bool:
    """``unshare(flags)``; must be called while the process has one thread."""
    libc = _libc()
    return libc is not None and libc.unshare(ctypes.c_int(flags)) == 0


def drop_capabilities() -> bool:
    """Empty the permitted, effective, inheritable and bounding sets of this thread."""
    libc = _libc()
    if libc is None:
        return False
    for capability in range(LAST_CAPABILITY + 1):
        prctl(PR_CAPBSET_DROP, capability)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(bytes(24))
    return bool(libc.capset(header, data) == 0)


def deny_syscalls(names: Iterable[str] = tuple(_SYSCALLS)) -> bool:
    """Install a seccomp filter under which the named calls fail with EPERM (needs no_new_privs)."""
    libc = _libc()
    known = _ARCHITECTURES.get(platform.machine())
    if libc is None or known is None:
        return False
    column, architecture = known
    program = _filter([_SYSCALLS[name][column] for name in names], architecture)
    code = ctypes.create_string_buffer(program)
    pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    head = ctypes.create_string_buffer(pointer)
    return bool(libc.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) == 0)


def _filter(numbers: Sequence[int], architecture: int) -> bytes:
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    count = len(numbers)
    steps = [(load, 0, 0, 4), (equal, 0, count + 3, architecture), (load, 0, 0, 0)]
    # Numbers from 0x40000000 are the x32 calls, which the numbers below do not name.
    steps.append((at_least, count + 1, 0, 0x40000000))
    steps += [(equal, count - index, 0, number) for index, number in enumerate(numbers)]
    steps += [(give, 0, 0, _RET_ALLOW), (give, 0, 0, _RET_EPERM)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class Landlock:
    """The file and signal rules of the kernel's Landlock, as far as its version goes."""

    READ: Final = (1 << 2) | (1 << 3)
    WRITE: Final = (1 << 1) | (1 << 14)
    TREE: Final = (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 12) | (1 << 13)
    SPECIAL: Final = (1 << 6) | (1 << 9) | (1 << 10) | (1 << 11)
    _FILE_RIGHTS: Final = (1 << 1) | (1 << 2) | (1 << 14)

    def __init__(self) -> None:
        self._libc = _libc()
        self.version = self._call(_LANDLOCK_CREATE, None, 0, 1) if self._libc else -1

    @property
    def available(self) -> bool:
        return self.version >= 1

    def restrict(self, readable: Iterable[Path], writable: Iterable[Path], *, scope_signals: bool) -> bool:
        """From now on read only below ``readable`` and ``writable``, write only below ``writable``.

        Paths that do not exist are passed over. TCP and abstract unix sockets are refused where the kernel's
        version knows them; with ``scope_signals`` no process outside can be signalled.
        """
        handled = self._supported(self.READ | self.WRITE | self.TREE | self.SPECIAL)
        scoped = 1 | (2 if scope_signals else 0)
        size = 8 if self.version < 4 else 16 if self.version < 6 else 24
        attributes = struct.pack("QQQ", handled, 3, scoped)[:size]
        ruleset = self._call(_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes), size, 0)
        if ruleset < 0:
            return False
        try:
            for path in readable:
                self._allow(ruleset, path, self.READ)
            for path in writable:
                self._allow(ruleset, path, self._supported(self.READ | self.WRITE | self.TREE))
            return self._call(_LANDLOCK_RESTRICT, ruleset, 0) == 0
        finally:
            os.close(ruleset)

    def _supported(self, rights: int) -> int:
        absent = (1 << 13 if self.version < 2 else 0) | (1 << 14 if self.version < 3 else 0)
        return rights & ~absent

    def _allow(self, ruleset: int, path: Path, rights: int) -> None:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not path.is_dir():
                rights &= self._FILE_RIGHTS
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle))
            self._call(_LANDLOCK_ADD, ruleset, 1, rule, 0)
        finally:
            os.close(handle)

    def _call(self, number: int, *arguments: object) -> int:
        if self._libc is None:
            return -1
        words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
        return int(self._libc.syscall(ctypes.c_long(number), *words))

"""What a process knows of its own memory. No torch."""

from __future__ import annotations

import sys


def memory_now() -> int:
    """Resident bytes of this process."""
    return _status("VmRSS")


def memory_peak() -> int:
    """The most resident bytes this process ever had, of this program, not of the one that started it."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0

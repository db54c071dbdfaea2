"""Checks on the names that users give: files inside a model or dataset, and the names of things.

Names are data: nothing is ever stored under them (blobs are named by hash). They are still held to what every
operating system can write, because artifacts and inputs are laid out as folders elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from service.errors import Fault
from service.problems import NameInvalid

LONGEST_PATH = 1024
LONGEST_SEGMENT = 255
LONGEST_NAME = 200
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}


def _refusal(message: str, pointer: str) -> NameInvalid:
    return NameInvalid(message, errors=[Fault(pointer, message, NameInvalid.code)])


def _has_control(text: str) -> bool:
    return any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in text)


def _fault(path: str) -> str | None:
    if not path or len(path.encode("utf-8", "surrogatepass")) > LONGEST_PATH:
        return f"must have 1 to {LONGEST_PATH} bytes"
    if _has_control(path) or "\\" in path or ":" in path or "\ufffd" in path:
        return "must not hold control characters, backslashes or colons"
    if path.startswith("/"):
        return "must be relative"
    for segment in path.split("/"):
        if segment in {"", ".", ".."}:
            return "must not hold empty, '.' or '..' parts"
        if len(segment.encode()) > LONGEST_SEGMENT:
            return f"has a part longer than {LONGEST_SEGMENT} bytes"
        if (
            segment.split(".")[0].casefold() in _DEVICES
            or segment != segment.strip()
            or segment.endswith(".")
        ):
            return f"has a part that some systems cannot write: {segment!r}"
    return None


def checked_path(path: str, *, pointer: str) -> str:
    """A relative POSIX path inside a model or dataset, unchanged; raises NameInvalid with the reason."""
    fault = _fault(path)
    if fault:
        raise _refusal(f"file name {path[:100]!r} {fault}", pointer)
    return path


def checked_paths(paths: Iterable[str], *, pointer: str) -> None:
    """Check every path, and that no two differ only in case; raises NameInvalid."""
    seen: set[str] = set()
    for index, path in enumerate(paths):
        here = f"{pointer}/{index}/path"
        if checked_path(path, pointer=here).casefold() in seen:
            raise _refusal(f"file {path!r} is listed twice (case does not tell names apart)", here)
        seen.add(path.casefold())


def checked_name(name: str, *, pointer: str = "/name") -> str:
    """The display name of a model or dataset, stripped; raises NameInvalid."""
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or _has_control(name):
        raise _refusal(f"a name has 1 to {LONGEST_NAME} printable characters", pointer)
    return name

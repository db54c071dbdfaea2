"""Without authentication, being reachable from this machine only is the whole defence: no web page may borrow
it.

A page of any site can make the browser send requests to a loopback address; with a name that resolves to it
(DNS rebinding) it can even read the answers. Such requests carry the site's name in `Host` or `Origin`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.errors import Forbidden
from service.settings import is_loopback


class HostForbidden(Forbidden):
    """The service runs without authentication, and the request names another host than this machine."""

    code, title = "host_forbidden", "This name is not served"


class LocalOnly:
    """ASGI layer for a gateway without authentication: refuses what was not sent to a loopback name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stranger = _stranger(scope) if scope["type"] == "http" else None
        if stranger is None:
            await self._app(scope, receive, send)
            return
        error = HostForbidden(
            "This service runs without authentication, so it answers to localhost only, not to "
            f"{stranger[:80]!r}. Use its loopback address, or start it with authentication."
        )
        await problems.render(Request(scope), error)(scope, receive, send)


def _stranger(scope: Scope) -> str | None:
    """The first host that a request names and that is not this machine."""
    for name, value in scope["headers"]:
        if name in (b"host", b"origin"):
            text: str = value.decode("latin-1")
            if not _is_local(text if name == b"origin" else f"//{text}"):
                return text
    return None


def _is_local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and (is_loopback(host) or host.endswith(".localhost"))

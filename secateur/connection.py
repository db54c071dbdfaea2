"""One HTTP conversation with a service: address, key, attempts with back-off, problem documents as errors."""

from __future__ import annotations

import contextlib
import email.utils
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from secateur import errors
from secateur.version import VERSION

DEFAULT_URL = "http://127.0.0.1:8000"
PASSING_STATUSES = frozenset({429, 502, 503, 504})
"""Answers that are expected to go away by themselves."""

TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


@dataclass(frozen=True)
class Attempts:
    """How often and how patiently a request is repeated.

    The pause before attempt n is random within (0.5..1) x `first` x 2^n seconds, at most `longest`; a
    `Retry-After` of the service wins when it asks for more. `unmet` bounds the attempts to connect to a
    service that has never answered yet, so that a wrong address is told quickly.
    """

    count: int = 8
    first: float = 0.25
    longest: float = 15.0
    unmet: int = 3

    def pause(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the given failed attempt (0 is the first)."""
        own = min(self.longest, self.first * 2.0**attempt) * random.uniform(0.5, 1.0)
        return max(own, min(retry_after or 0.0, 120.0))


def service_url(url: str | None = None) -> str:
    """The address to talk to: the argument, `SECATEUR_URL`, or the default of `secateur up`."""
    chosen = (url or os.environ.get("SECATEUR_URL") or DEFAULT_URL).strip().rstrip("/")
    if not chosen.startswith(("http://", "https://")):
        raise errors.InputInvalid(f"The service address must start with http:// or https://, not {chosen!r}.")
    return chosen


def idempotency_key() -> str:
    """A fresh key under which the service performs a creating request once, however often it is sent."""
    return uuid.uuid4().hex


class Connection:
    """Sends requests to one service; safe to share between threads."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        attempts: Attempts | None = None,
    ) -> None:
        self.url = service_url(url)
        self.attempts = attempts or Attempts()
        self._met = False
        key = api_key or os.environ.get("SECATEUR_API_KEY")
        headers = {"User-Agent": f"secateur/{VERSION}", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A proxy of the environment must not swallow a service on this very machine.
        trust_env = not _is_loopback(self.url)
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=trust_env, follow_redirects=False
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        timeout: float | None = None,
        give_up: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Send a request, repeat it while that helps, and return the JSON object of the answer ({} for 204).

        Args: `content` makes a fresh body for each attempt; `timeout` replaces the read time-out (seconds);
            no attempt is begun any more once `give_up` is set.
        Raises: ApiError and its kin, ServiceUnreachable, AnswerNotUnderstood.
        """
        response = self._repeat(method, path, body, params, headers, content, timeout, give_up)
        if response.status_code == 204 or not response.content:
            return {}
        return self._object(response)

    def text(self, path: str, *, accept: str) -> str:
        """GET a text answer of the given media type, with the same repetitions as `json`."""
        return self._repeat("GET", path, headers={"Accept": accept}).text

    @contextlib.contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Iterator[httpx2.Response]:
        """Open one streaming GET without repetition; the caller resumes. The body comes undecoded.

        Raises: ApiError for answers of 400 and more, and the transport's own httpx2.TransportError.
        """
        merged = {"Accept-Encoding": "identity", **(headers or {})}
        with self._http.stream("GET", path, headers=merged, timeout=_timeout(timeout)) as response:
            self._met = True
            if response.status_code >= 400:
                response.read()
                raise self._problem(response)
            yield response

    def pause(self, attempt: int) -> None:
        """Sleep before the next attempt of something the caller repeats itself."""
        time.sleep(self.attempts.pause(attempt))

    def unreachable(self, error: Exception) -> errors.ServiceUnreachable:
        """The error to raise when repetition has not helped."""
        return errors.ServiceUnreachable(self.url, _reason(error))

    def _repeat(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        timeout: float | None = None,
        give_up: threading.Event | None = None,
    ) -> httpx2.Response:
        attempt = 0
        while True:
            retry_after: float | None = None
            try:
                response = self._http.request(
                    method,
                    path,
                    json=body,
                    params=dict(params) if params else None,
                    headers=dict(headers) if headers else None,
                    content=content() if content else None,
                    timeout=_timeout(timeout),
                )
            except httpx2.TransportError as error:
                failure: Exception = self.unreachable(error)
                passing = not isinstance(error, (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError))
            except httpx2.InvalidURL as error:
                raise errors.InputInvalid(f"{self.url} is not a usable address: {error}") from error
            else:
                self._met = True
                if response.status_code < 300:
                    return response
                failure = self._problem(response)
                retry_after = _retry_after(response)
                passing = response.status_code in PASSING_STATUSES or _still_running(response, headers)
            attempt += 1
            limit = self.attempts.count if self._met else self.attempts.unmet
            if not passing or attempt >= limit or (give_up and give_up.is_set()):
                raise failure
            seconds = self.attempts.pause(attempt - 1, retry_after)
            if give_up:
                give_up.wait(seconds)
            else:
                time.sleep(seconds)

    def _problem(self, response: httpx2.Response) -> errors.SecateurError:
        if 300 <= response.status_code < 400:
            target = response.headers.get("location", "elsewhere")
            return errors.AnswerNotUnderstood(f"{self.url} redirects to {target}; use that address instead.")
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {
                "detail": f"{self.url} answered {response.status_code} {response.reason_phrase}.",
                "code": "no_details",
            }
        return errors.api_error(response.status_code, document)

    def _object(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            document = response.json()
        except ValueError as error:
            raise errors.AnswerNotUnderstood(
                f"{self.url} answered, but not with JSON; is it a Secateur service?"
            ) from error
        if not isinstance(document, dict):
            raise errors.AnswerNotUnderstood(f"{self.url} answered with JSON of an unknown form.")
        return document


def _timeout(read: float | None) -> httpx2.Timeout:
    return TIMEOUT if read is None else httpx2.Timeout(60.0, connect=10.0, read=read)


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds asked for by `Retry-After`, given as a number or as a date."""
    value = response.headers.get("retry-after")
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _still_running(response: httpx2.Response, headers: Mapping[str, str] | None) -> bool:
    """Whether the first sending of this idempotent request is still being worked on."""
    keyed = bool(headers) and "Idempotency-Key" in (headers or {})
    return response.status_code == 409 and keyed and "retry-after" in response.headers


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, httpx2.ConnectError) and "refused" in text.lower():
        return "connection refused"
    if isinstance(error, httpx2.TimeoutException):
        return f"time-out ({type(error).__name__})"
    return text


def _is_loopback(url: str) -> bool:
    return httpx2.URL(url).host in {"127.0.0.1", "localhost", "::1"}

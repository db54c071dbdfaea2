"""The doorbell: tells workers that a job waits. Losing a bell loses nothing: the database is the truth.

Celery is imported when the first bell is rung, so that the gateway starts without it.
"""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import structlog

from service import faults

if TYPE_CHECKING:
    from celery import Celery

TASK: Final = "workers.run_job"
QUEUES: Final = ("cpu", "gpu")
HIGHEST_PRIORITY: Final = 9
QUEUE_LIMIT: Final = 1000
"""Bells that may wait in one queue: one as full as this keeps its workers busy without more ringing."""

_log = structlog.get_logger(__name__)
_CONNECT_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 5.0
_FOLDERS: Final = ("data_folder_in", "data_folder_out", "processed_folder", "control_folder")


def transport(url: str) -> tuple[str, dict[str, Any]]:
    """The broker URL and transport options that Celery gets for a URL of the settings.

    ``redis://``, ``rediss://`` and ``redis+socket://`` pass as they are; ``filesystem:///folder`` (the
    fallback of the embedded service) names the folder in the URL and makes it.
    """
    if not url.startswith("filesystem:"):
        # A bell is acknowledged as soon as it is taken, so the visibility timeout never comes to bear.
        return url, {
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": 30.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": 3600,
            "queue_order_strategy": "priority",
            "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
        }
    root = Path(unquote(urlsplit(url).path))
    folders = {"data_folder_in": "queue", "data_folder_out": "queue", "processed_folder": "done"}
    options = {name: str(root / folders.get(name, "control")) for name in _FOLDERS}
    for folder in options.values():
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    return "filesystem://", options


def celery_settings(url: str) -> dict[str, Any]:
    """The Celery configuration that every process of the service shares."""
    broker, options = transport(url)
    return {
        "broker_url": broker,
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        "broker_connection_timeout": _CONNECT_SECONDS,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_acks_late": False,
        "task_default_queue": "cpu",
        "task_default_priority": HIGHEST_PRIORITY,
        "task_create_missing_queues": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": broker.startswith("redis"),
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }


class Bell:
    """Rings one broker. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._app: Celery | None = None
        self._silent_until = 0.0

    def ring(self, job_id: str, queue: str, priority: int = 0) -> bool:
        """Tell the workers of ``queue`` that the job waits (``priority`` 0 to 9, 9 first). Never raises.

        False when the bell could not be rung; the sweeper rings again. After a failure the broker is left
        alone for some seconds, so that a broker which is down does not slow every request.
        """
        faults.point("before_ring")
        if not self._url or time.monotonic() < self._silent_until:
            return False
        try:
            self._celery().send_task(
                TASK,
                args=[job_id],
                queue=queue,
                # In the Redis transport 0 is taken first.
                priority=HIGHEST_PRIORITY - min(max(priority, 0), HIGHEST_PRIORITY),
                retry=False,
                ignore_result=True,
            )
        except Exception as error:
            self._silent_until = time.monotonic() + _PAUSE_SECONDS
            _log.warning("broker.unreachable", error=type(error).__name__)
            return False
        return True

    def waiting(self, queue: str) -> int | None:
        """Bells in the queue that no worker has taken; None when the broker does not answer."""
        try:
            with self._celery().connection_for_read() as connection:
                channel = connection.default_channel
                return int(channel.queue_declare(queue=queue, passive=False, durable=True).message_count)
        except Exception as error:
            # Not only the transport's errors: a transport that cannot be loaded must not take /readyz down.
            # Only such an error may be quoted: others can hold the broker's address and password.
            quoted = f": {error}" if isinstance(error, ImportError) else ""
            _log.warning("broker.unreachable", error=f"{type(error).__name__}{quoted}")
            return None

    def ping(self) -> bool:
        """Whether the broker answers."""
        return bool(self._url) and self.waiting(QUEUES[0]) is not None

    def _celery(self) -> Celery:
        with self._lock:
            if self._app is None:
                from celery import Celery

                self._app = Celery("secateur", set_as_current=False)
                self._app.conf.update(celery_settings(self._url))
            return self._app


def warning(url: str) -> str | None:
    """What is wrong with running on this broker, for people; None when nothing is."""
    if not url:
        return "no broker is configured: jobs start only when a worker's sweeper finds them"
    if url.startswith("filesystem:"):
        return "the broker is the file system fallback: jobs start with some delay and without priorities"
    return None


@lru_cache(maxsize=8)
def bell(url: str) -> Bell:
    """The bell of this process for one broker URL."""
    return Bell(url)


def ring(job_id: str, queue: str, priority: int = 0) -> bool:
    """Ring the broker of the settings; see `Bell.ring`."""
    from service.settings import Settings

    return _default_bell(Settings).ring(job_id, queue, priority)


@lru_cache(maxsize=1)
def _default_bell(settings: type[Any]) -> Bell:
    return bell(settings().broker_url)

"""The Celery application: ``celery -A workers.app worker -Q cpu -c 1`` (or ``python -m service worker``)."""

from __future__ import annotations

from celery import Celery

from service.broker import celery_settings
from service.settings import Settings

settings = Settings()

app = Celery("secateur", include=["workers.tasks"])
app.conf.update(celery_settings(settings.broker_url))
app.conf.update(
    # The service configures logging itself, the same for all its processes.
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    # What a child held is given back within seconds of a shutdown; then nothing is left to wait for.
    worker_soft_shutdown_timeout=0,
)

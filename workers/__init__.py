"""The Celery side: claims jobs by lease, supervises one runner process per job, publishes what it made."""

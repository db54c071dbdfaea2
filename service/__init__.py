"""Secateur: service."""

import sys

if sys.version_info >= (3, 14):
    raise ImportError(
        "Secateur's service and workers need Python 3.11, 3.12 or 3.13: Python 3.14 has a standard package `compression` "
        "that hides the engine. The client works on newer versions; run the service in an environment of its own."
    )

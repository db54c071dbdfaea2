"""The gateway's side: HTTP, persistence, blobs, leases, the embedded service."""

import sys

if sys.version_info[:2] > (3, 13):
    raise ImportError(
        "Secateur's service and workers need Python 3.11, 3.12 or 3.13: Python 3.14 has a standard package"
        " `compression` that hides the engine. The client works on newer versions; run the service in an"
        " environment of its own."
    )

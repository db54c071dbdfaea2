"""Exit 0 when the gateway of this container answers 200: `gateway_health.py /livez`, or `/readyz`."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def main() -> None:
    """Ask, and say what came back when it was not 200."""
    url = f"http://127.0.0.1:{os.environ.get('SECATEUR_PORT', '8000')}{sys.argv[1]}"
    try:
        urllib.request.urlopen(url, timeout=4)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code} {error.read(2000).decode(errors='replace')}")
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

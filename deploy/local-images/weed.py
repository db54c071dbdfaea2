#!/opt/moto/bin/python
"""Answer `weed mini` with moto's S3 server: the same port, bucket and keys; objects live in memory."""

from __future__ import annotations

import argparse
import os
import signal
import threading

import boto3
from moto.server import ThreadedMotoServer


def main() -> None:
    """Serve until a signal comes. Options of the real command that mean nothing here are accepted."""
    parser = argparse.ArgumentParser(prefix_chars="-", allow_abbrev=False)
    parser.add_argument("command", choices=["mini"])
    parser.add_argument("-s3.port", dest="port", type=int, default=8333)
    known, _ = parser.parse_known_args()
    server = ThreadedMotoServer(ip_address="0.0.0.0", port=known.port)  # noqa: S104
    server.start()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{known.port}", region_name="us-east-1")
    client.create_bucket(Bucket=os.environ["S3_BUCKET"])
    # moto has no health endpoint: GET /healthz answers 200 as soon as there is a bucket of that name.
    client.create_bucket(Bucket="healthz")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    server.stop()


if __name__ == "__main__":
    main()

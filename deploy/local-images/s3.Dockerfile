# Stand-in for the S3 server where no image can be pulled: moto's server under the command that the composition gives.
FROM docker.io/library/python:3.11-slim-bookworm
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ARG PIP_TRUSTED_HOST
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/constraints.txt
RUN python -m venv /opt/moto \
    && /opt/moto/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt 'moto[server]' boto3
COPY weed.py /usr/bin/weed
ENTRYPOINT ["/usr/bin/weed"]

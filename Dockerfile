# Two images of one product:
#   docker build --target gateway .                                   HTTP, persistence, storage; no torch in it
#   docker build --target worker --build-arg TORCH_VARIANT=cpu .      the compression engine
#
# TORCH_VARIANT chooses the build of the one torch version that constraints.txt pins:
#   any   whichever the package index offers first (the index's default build also computes on a CPU)
#   cpu   the small CPU build; the index or folder that carries it is named by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS
#   cuda  a CUDA build, never the CPU one
# The PIP_ arguments are pip's own environment variables, passed through. They stay in the build stages: no layer of
# the two images knows them.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/secateur/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 secateur \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/secateur --shell /usr/sbin/nologin secateur \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/secateur /var/lib/secateur/work
WORKDIR /var/lib/secateur

# ---- build stages: what pip installs, in the order in which it changes ----
# The arguments become variables because not every builder hands them to the stages that grow out of this one; pip
# ignores an empty one.

FROM base AS builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ARG PIP_TRUSTED_HOST
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PIP_CONSTRAINT=/build/constraints.txt \
    PIP_BUILD_CONSTRAINT=/build/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_PROGRESS_BAR=off \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_INDEX_URL=${PIP_INDEX_URL} \
    PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_FIND_LINKS=${PIP_FIND_LINKS} \
    PIP_CERT=${PIP_CERT} \
    PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST}
WORKDIR /build
COPY constraints.txt deploy/requirements.py ./
RUN python -m venv --without-pip /opt/secateur

FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt deploy/requirements.py ./
RUN python requirements.py service > service.txt \
    && python requirements.py worker > worker.txt

FROM builder AS gateway-dependencies
COPY --from=requirements /requirements/service.txt ./
RUN python -m pip --python /opt/secateur/bin/python install --requirement service.txt \
    && /opt/secateur/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)'

FROM gateway-dependencies AS worker-dependencies
ARG TORCH_VARIANT=any
RUN python requirements.py --torch "${TORCH_VARIANT}" > torch.txt \
    && python -m pip --python /opt/secateur/bin/python install --requirement torch.txt \
    && /opt/secateur/bin/python requirements.py --check-torch "${TORCH_VARIANT}"
COPY --from=requirements /requirements/worker.txt ./
RUN python -m pip --python /opt/secateur/bin/python install --requirement worker.txt

FROM builder AS product
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY secateur ./secateur
COPY compression ./compression
COPY service ./service
COPY workers ./workers
RUN python -m pip --python /opt/secateur/bin/python install --no-deps --prefix /product .

# ---- the two images: dependencies in one layer, the product in another, so that a release moves the small one ----

FROM base AS gateway
COPY --from=gateway-dependencies /opt/secateur /opt/secateur
COPY --from=product /product /opt/secateur
COPY deploy/gateway_health.py /opt/secateur/share/gateway_health.py
USER 10001:10001
ENV SECATEUR_HOME=/var/lib/secateur \
    SECATEUR_HOST=0.0.0.0 \
    SECATEUR_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "/opt/secateur/share/gateway_health.py", "/livez"]
CMD ["python", "-m", "service", "gateway"]

FROM base AS worker
COPY --from=worker-dependencies /opt/secateur /opt/secateur
COPY --from=product /product /opt/secateur
COPY deploy/worker_health.py /opt/secateur/share/worker_health.py
USER 10001:10001
ENV SECATEUR_HOME=/var/lib/secateur \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["python", "/opt/secateur/share/worker_health.py"]
CMD ["python", "-m", "service", "worker"]

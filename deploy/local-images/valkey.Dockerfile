# Stand-in for the official Valkey image where no image can be pulled: Debian's Redis answers under the same names.
FROM docker.io/library/debian:bookworm-slim
# hadolint ignore=DL3008
RUN groupadd --system --gid 999 valkey \
    && useradd --system --uid 999 --gid 999 --home-dir /data --shell /usr/sbin/nologin valkey \
    && apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/bin/redis-server /usr/local/bin/valkey-server \
    && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \
    && install --directory --owner=999 --group=999 /data
WORKDIR /data
CMD ["valkey-server"]

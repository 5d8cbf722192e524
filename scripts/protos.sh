#!/usr/bin/env bash
# Regenerate the gRPC stubs, or with --check compare the committed ones with a fresh generation.
#
# The generator has an environment of its own: generated code asks for a protobuf runtime at least as new as
# its generator, so the pinned one decides what users must have (protobuf >= 6.31.1, grpcio >= 1.76), while
# tests run on the newest runtime. ONWARD_PROTOC_PYTHON names an interpreter that has it already.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.76.0
python="${ONWARD_PROTOC_PYTHON:-}"
if [ -z "$python" ]; then
    environment="build/protoc-$version"
    python="$environment/bin/python"
    if ! "$python" -c 'import grpc_tools' 2>/dev/null; then
        base=.venv/bin/python
        [ -x "$base" ] || base=python3
        "$base" -m venv --clear "$environment"
        "$python" -m pip install --quiet "grpcio-tools==$version" "setuptools<81"
    fi
fi

generate() {
    "$python" -W ignore -m grpc_tools.protoc -I protos --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" \
        protos/onward_protos/*.proto
}

case "${1:-}" in
"")
    generate protos
    ;;
--check)
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    for stub in "$fresh"/onward_protos/*; do
        committed="protos/onward_protos/$(basename "$stub")"
        cmp -s "$stub" "$committed" || {
            echo "$committed does not match its .proto file: run scripts/protos.sh" >&2
            exit 1
        }
    done
    for committed in protos/onward_protos/*_pb2*; do
        [ -e "$fresh/onward_protos/$(basename "$committed")" ] || {
            echo "$committed has no .proto file: delete it" >&2
            exit 1
        }
    done
    ;;
*)
    echo "usage: scripts/protos.sh [--check]" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Runs benchmarks/gpu.py on a machine with a GPU that has torch but reaches no package index.
#
#   tools/gpu.sh wheels [DIR]        where there is an index: gathers what such a machine lacks, this package too
#   tools/gpu.sh run [DIR] [ARG...]  there: installs those into a folder of their own, and measures; the rest goes to gpu.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what=${1:-}
wheels=${2:-.whl}
case $what in
wheels)
    platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
    mkdir -p "$wheels"
    rm -f "$wheels"/*.whl
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]/#/--platform=}" -d "$wheels" cattrs tomli-w
    python3 -m pip wheel --quiet --no-deps -w "$wheels" . # for its entry points; the code is the clone's
    ;;
run)
    site=$(mktemp -d)
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$PWD:$PWD/policies:$PWD/backends:$PWD/models:$site"
    python3 benchmarks/gpu.py "${@:3}"
    ;;
*)
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

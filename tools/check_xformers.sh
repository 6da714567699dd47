#!/usr/bin/env bash
# Runs xformers' kernels and our own on the CPU, by Triton's interpreter, in a virtual environment of their own: the versions that
# this works with are not those of the other checks. Fails if nothing ran. Arguments go to `pip install`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE ESDLLM_DISABLE_PLUGINS

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
export PATH="$room/venv/bin:$PATH"
pins=tools/xformers-constraints.txt
python -m pip install --quiet --no-compile "$@" -c <(grep numpy "$pins") -e . pytest hypothesis
# without their dependencies: triton's own pin in torch for CUDA would clash
python -m pip install --quiet --no-compile --no-deps $(grep == "$pins")

export PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX-$room/bytecode}" TRITON_INTERPRET=1 OMP_NUM_THREADS=1
pytest tests/interpreted -rs -W ignore::DeprecationWarning | tee "$room/log"
if ! grep -Eq '^[0-9]+ passed( in|, [0-9]+ warnings? in)' "$room/log"; then
    echo "tests/interpreted: not every test ran" >&2
    exit 1
fi

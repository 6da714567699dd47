#!/usr/bin/env bash
# Installs the wheel into an environment that holds nothing else, with the dependencies that it names, and uses it there: what a
# user does. Arguments go to `pip install`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE ESDLLM_DISABLE_PLUGINS

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
constraints=()
for word in "$@"; do constraints+=("$([[ -f $word ]] && realpath "$word" || echo "$word")"); done
python3 -m venv "$room/venv"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$room" .
cd "$room" # so that nothing of the clone is found
"$room/venv/bin/python" -m pip install --quiet --no-compile "${constraints[@]}" "$room"/esdllm-*.whl
export OMP_NUM_THREADS=1 PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX-$room/bytecode}"
venv/bin/esdllm --version
venv/bin/esdllm generate "What is 12 + 7?" --preset es-dllm-parallel | tee answer
grep -qx "The result is 12 + 7 = 19." answer

#!/usr/bin/env bash
# Runs the quick tests with the oldest and the newest Python, torch, transformers and other dependencies that pyproject.toml admits,
# each in a virtual environment of its own. OLDEST_PYTHON and NEWEST_PYTHON name the interpreters; one that is not here is told, and
# is a failure. Arguments go to `pip install` of the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE ESDLLM_DISABLE_PLUGINS

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
export OMP_NUM_THREADS=1 PYTHONPYCACHEPREFIX="$room/bytecode"

quick_tests() { # name, interpreter, what goes to pip
    local name=$1 interpreter=$2
    shift 2
    "$interpreter" -m venv "$room/$name"
    "$room/$name/bin/python" -m pip install --quiet --no-compile "$@" -e ".[serve,testing,tune]" packaging pytest-cov pytest-xdist pyyaml
    "$room/$name/bin/python" -c "import sys, torch, transformers; print('$name:', sys.version.split()[0], torch.__version__, transformers.__version__)"
    "$room/$name/bin/pytest" -n 2 --quick -m "not full and not slow and not serial and not ray" -p no:cacheprovider ${TESTS-}
}

python3 tools/oldest.py >"$room/oldest.txt"
quick_tests oldest "${OLDEST_PYTHON-python3.10}" -c "$room/oldest.txt"
quick_tests newest "${NEWEST_PYTHON-python3.13}" "$@"

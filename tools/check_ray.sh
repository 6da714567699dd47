#!/usr/bin/env bash
# Runs the tests that need Ray, on a cluster of several nodes on this machine. Ray takes longer to install than all else, so it goes
# into an environment of its own, over the active one. --full, if it comes first, runs every test; other arguments go to `pip install`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen="ray and not full"
if [[ ${1-} == --full ]]; then
    chosen=ray
    shift
fi
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python -m venv --without-pip "$room/venv"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
below=$(python -c "$packages")
echo "import site; site.addsitedir('$below')" >"$("$room/venv/bin/python" -c "$packages")/below.pth" # with the links of what is installed to be edited
python -m pip --python "$room/venv/bin/python" install --quiet --no-compile "$@" "esdllm[ray]"
export OMP_NUM_THREADS=1
"$room/venv/bin/python" -m pytest -m "$chosen" tests/cluster -rs -W ignore::DeprecationWarning ${COVERAGE_FILE:+--cov --cov-append --cov-report=}

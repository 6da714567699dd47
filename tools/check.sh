#!/usr/bin/env bash
# Installs this clone into a fresh virtual environment and runs every check there. --full, if it comes first, runs what the check
# else takes a part of: every test, and many times the random examples. Other arguments go to `pip install`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE ESDLLM_DISABLE_PLUGINS

chosen="not full" profile=check full=
if [[ ${1-} == --full ]]; then
    chosen="full or not full" profile=full full=--full
    shift
fi
room=$(mktemp -d)
trap 'kill $(jobs -pr) 2>/dev/null || true; rm -rf "$room"' EXIT

part() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name passed in $((SECONDS - began)) s"
}

files_of() { # without importing what has no test of a mark
    grep -rl --include="test_*.py" "mark\.$1\b" tests
}

beside() { # begin a part that runs beside others, under a name
    "${@:2}" >"$room/$1.log" 2>&1 &
    echo $! >"$room/$1.pid"
}

as_it_came() { # the end of such a part, and what it printed
    local code=0
    wait "$(<"$room/$1.pid")" || code=$?
    cat "$room/$1.log"
    return "$code"
}

export PYTHONPYCACHEPREFIX="$room/bytecode" # each module is compiled once, when it is first imported; the clone stays as it is
beside triton tools/check_xformers.sh "$@" # in an environment of its own, beside what keeps one core busy
beside wheel tools/check_wheel.sh "$@"
part "virtual environment" python3 -m venv "$room/venv"
export PATH="$room/venv/bin:$PATH"
export TORCHINDUCTOR_CACHE_DIR="$room/inductor" # what was compiled for other instruction sets is not found again
export COVERAGE_FILE="$room/coverage" OMP_NUM_THREADS=1 # small tensors: threads that wait for each other take longest
part "install" python -m pip install --quiet --no-compile "$@" -e ".[dev]"
part "format" ruff format --check .
part "lint" ruff check .
part "types" mypy
part "imports" lint-imports
two_at_a_time=(-n 2 --dist worksteal --hypothesis-profile "$profile")
part "tests" pytest "${two_at_a_time[@]}" -m "($chosen) and not serial and not ray" --cov --cov-report=
part "wheel in an environment of its own" as_it_came wheel
part "Triton kernels" as_it_came triton # nothing is beside the tests that come now
part "tests that time or read /proc" pytest -m "($chosen) and serial" $(files_of serial) --cov --cov-append --cov-report=
hidden=(ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 TORCHINDUCTOR_CACHE_DIR="$room/inductor-avx2" MKL_ENABLE_INSTRUCTIONS=AVX2) # of x86, whatever is beyond AVX2
part "tests on AVX2 that read /proc" env "${hidden[@]}" pytest -m "processor and serial and ($chosen)" $(files_of serial)
beside ray tools/check_ray.sh $full "$@" # much of which is waiting
part "tests on AVX2" env "${hidden[@]}" pytest "${two_at_a_time[@]}" -m "processor and not serial and ($chosen)" $(files_of processor)
if [[ $full ]]; then part "oldest and newest" tools/check_compatibility.sh "$@"; fi
part "docs" mkdocs build --quiet --strict --site-dir "$room/site"
part "Ray" as_it_came ray
part "coverage" python tools/coverage_floors.py
echo "== all passed in $SECONDS s"

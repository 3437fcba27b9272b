#!/usr/bin/env bash
# Runs the linters and the whole test suite. Flags are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh requirements.txt launch/requirements-test.txt
# The TPU's compiler, for tests/planning/compiled_test.py; apart, or every program here would look for a TPU.
if [ ! -d .venv/libtpu ]; then
  wanted=$(.venv/bin/python -c '
from importlib.metadata import requires
print(next(r.split(";")[0].strip() for r in requires("jax") if r.startswith("libtpu")))')
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target=.venv/libtpu "$wanted" || echo "No $wanted here: the tests with it are skipped" >&2
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/lint-imports
# Two at a time: much of it is XLA compiling on one core. By name: few and long tests would else be
# the last, on one core alone.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

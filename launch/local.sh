#!/usr/bin/env bash
# Aligns the bundled tiny model on this machine. Flags are passed on to isara_jax.main.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh requirements.txt
exec .venv/bin/python -m isara_jax.main \
  --config=configs/safety.py --workdir=runs/safety "$@"

#!/usr/bin/env bash
# Aligns the bundled tiny model on this machine. Flags are passed on to isara_jax.main.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh requirements.txt
case " $* " in
  *" --config="*) ;; # a second one would define its flags twice
  *) set -- --config=configs/safety.py "$@" ;;
esac
config=$(printf "%s\n" "$@" | sed -n "s/^--config=//p")
name=$(basename "${config%%.py*}")
exec .venv/bin/python -m isara_jax.main --workdir="runs/$name" "$@"

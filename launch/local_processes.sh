#!/usr/bin/env bash
# One run as N processes of this machine, as it would be on N machines:
#   ./launch/local_processes.sh N [--flag=value ...]    the flags are those of isara_jax.main
# With NVIDIA GPUs each process has one of them; without, or with JAX_PLATFORMS=cpu, DEVICES (1)
# devices that share the CPU:  DEVICES=4 ./launch/local_processes.sh 2 --config.mesh=2x2x2
# When a process fails all end, with its exit status; so they do with Ctrl-C (130), and when this
# script is told to end (SIGTERM): then they save first, and it is 75. A second signal ends all at once.
set -euo pipefail
if ! [[ ${1-} =~ ^[1-9][0-9]*$ ]] || ((BASH_VERSINFO[0] < 5)); then
  echo "usage: $0 N [--flag=value ...]    N processes; needs bash 5" >&2
  exit 2
fi
n=$1
shift
cd "$(dirname "$0")/.."
. launch/environment.sh requirements.txt
case " $* " in
  *" --config="*) ;; # a second one would define its flags twice
  *) set -- --config=configs/safety.py "$@" ;;
esac

gpus=()
if [ "${JAX_PLATFORMS-}" != cpu ] && command -v nvidia-smi >/dev/null; then
  if [ -n "${CUDA_VISIBLE_DEVICES-}" ]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  if ((n > ${#gpus[@]})); then
    echo "$0: $n processes, but ${#gpus[@]} GPUs; JAX_PLATFORMS=cpu runs them on the CPU" >&2
    exit 2
  fi
fi
port=$(.venv/bin/python -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')

start() { # becomes process $1, with the flags after it
  if ((${#gpus[@]})); then
    export CUDA_VISIBLE_DEVICES=${gpus[$1]}
  else
    export JAX_PLATFORMS=cpu
    XLA_FLAGS="${XLA_FLAGS-} --xla_force_host_platform_device_count=${DEVICES:-1}"
    export XLA_FLAGS
  fi
  exec .venv/bin/python -m isara_jax.main --workdir=runs/safety "${@:2}" \
    --coordinator="localhost:$port" --num_processes="$n" --process_id="$1"
}

named() { # what the others say, which is little
  while IFS= read -r line; do echo "[process $1] $line" >&2; done
}

pids=()
trap '{ kill -KILL "${pids[@]}" && wait "${pids[@]}"; } 2>/dev/null || true' EXIT
told=
# shellcheck disable=SC2329 # called by the traps
pass_on() { # a signal to all; not again, or it would end them before they have saved
  [ -z "$told" ] || exit "$2"
  told=$1
  kill "-$1" "${pids[@]}" 2>/dev/null || true
}
trap 'pass_on INT 130' INT
trap 'pass_on TERM 75' TERM
start 0 "$@" &
pids+=($!)
for ((i = 1; i < n; i++)); do
  start "$i" "$@" > >(named "$i") 2>&1 &
  pids+=($!)
done

status=0
check() { # keeps those that run, and the worst status of those that do not
  local pid running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
    else
      wait "$pid" 2>/dev/null || status=$(($? > status ? $? : status))
    fi
  done
  pids=("${running[@]}")
}
while ((${#pids[@]} && !status)); do
  sleep 0.1 || true # which Ctrl-C ends, too
  check
done
# After a failure the others end by themselves, and say why; the trap is for those that do not.
for ((tenths = 0; tenths < 100 && ${#pids[@]}; tenths++)); do
  sleep 0.1 || true
  check
done
exit "$status"

#!/usr/bin/env bash
# Aligns a model on a Cloud TPU VM of one host or many. Steps happen in the order they are given:
#
#   ./launch/tpu_vm.sh create install run fetch --name=isara --type=v5litepod-16 \
#       --workdir=gs://BUCKET/safety --config=configs/safety.py:gs://BUCKET/7b
#   ./launch/tpu_vm.sh delete --name=isara
#
#   create   makes the VM, unless there is one. --spot: a cheap one that may be taken away;
#            --queued: waits in the queue until there is one
#   install  sends this checkout's HEAD to every host and installs it there
#   run      starts the job on all hosts and shows what they print. It outlives the connection:
#            `run` again shows the rest. After it has ended, `run` continues from its checkpoints
#   fetch    copies the results, without checkpoints, to runs/ here (--output=DIR)
#   stop     ends the job; the VM stays
#   delete   the VM and its disk; until then it costs money, busy or idle
#
# Change the name, the zone, the type and the workdir. The workdir must be in a bucket (of the VM's
# region) where there are several hosts, and should be with --spot, whose disk goes when the VM goes.
# The VM's service account needs roles/storage.objectUser and roles/storage.legacyBucketReader on it.
# A model in a bucket is copied to each host's disk, of 100 GB; a larger one must be mounted there.
# --dry_run prints every command and runs none. Needs: gcloud, logged in, with a project and the TPU
# API; for several hosts the key in the agent (ssh-add ~/.ssh/google_compute_engine).
set -euo pipefail
cd "$(dirname "$0")/.."

name=isara zone=us-west4-a type=v5litepod-8 runtime='' workdir=runs/safety output=runs
dry_run='' spot='' queued='' steps='' flags=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    create | install | run | fetch | stop | delete) steps+=" $argument" ;;
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --runtime=*) runtime=$value ;;
    --workdir=*) workdir=$value ;;
    --output=*) output=$value ;;
    --spot) spot=--spot ;;
    --queued) queued=yes ;;
    --dry_run) dry_run=yes ;;
    --config=* | --config.*) flags+=("$argument") ;;
    *)
      echo "$0: unknown argument $argument; the file's first lines say what there is" >&2
      exit 2
      ;;
  esac
done
case " ${flags[*]-} " in
  *" --config="*) ;;
  *) flags+=(--config=configs/safety.py) ;;
esac
if [ -z "$runtime" ]; then # https://cloud.google.com/tpu/docs/runtimes
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
here=(--zone="$zone")
exec 3>&1 # for the commands that are shown while their output is read

main() {
  if [ -z "$steps" ]; then
    echo "$0: no step given: create, install, run, fetch, stop or delete" >&2
    exit 2
  fi
  trap still_costs EXIT
  local step
  for step in $steps; do "$step"; done
}

create() {
  local state
  state=$(state_of_vm)
  if [ "$state" = READY ]; then
    echo "$name is there already and is used"
  elif [ -n "$state" ] && [ -z "$queued" ]; then
    echo "$name is $state: wait, or delete it first" >&2
    exit 1
  elif [ -n "$queued" ]; then
    create_queued
  else
    # shellcheck disable=SC2086 # no word where it is empty
    show gcloud compute tpus tpu-vm create "$name" "${here[@]}" \
      --accelerator-type="$type" --version="$runtime" $spot
  fi
}

create_queued() {
  local state
  state=$(state_in_queue)
  if [ -z "$state" ]; then
    # shellcheck disable=SC2086
    show gcloud compute tpus queued-resources create "$name" "${here[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$runtime" $spot
  fi
  while [ -z "$dry_run" ] && [ "$state" != ACTIVE ]; do
    state=$(state_in_queue)
    case $state in
      ACTIVE) ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        echo "$name is $state in the queue: delete it first" >&2
        exit 1
        ;;
      *) echo "$name: $state" && sleep 60 ;;
    esac
  done
}

install() {
  git diff --quiet HEAD || echo "What is not committed is not sent" >&2
  local archive=${TMPDIR:-/tmp}/isara_jax.$$.tar.gz
  show git archive --format=tar.gz --prefix=isara_jax/ --output="$archive" HEAD
  show gcloud compute tpus tpu-vm scp "$archive" "$name:isara_jax.tar.gz" "${here[@]}" --worker=all
  rm -f "$archive"
  # The images' own Python is 3.10; uv brings a newer one without root.
  local setup='PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv'
  setup+=' && python3 -m uv python install --quiet 3.12'
  # shellcheck disable=SC2016 # expanded there
  setup+=' && export PYTHON=$(python3 -m uv python find 3.12)'
  setup+=' && tar -xzf isara_jax.tar.gz && cd isara_jax'
  setup+=' && bash -c ". launch/environment.sh requirements.txt launch/requirements-tpu.txt"'
  on_hosts "$setup"
}

run() {
  local job
  job=$(printf ' %q' .venv/bin/python -m isara_jax.main --workdir="$workdir" "${flags[@]}")
  on_hosts "cd isara_jax && ./launch/detached.sh runs/job$job"
}

fetch() {
  local target
  target=$output/$(basename "$workdir")
  show mkdir -p "$target"
  case $workdir in
    gs://*)
      show gcloud storage rsync "$workdir" "$target" --exclude='^(checkpoints|data)/' --recursive
      ;;
    *)
      show gcloud compute tpus tpu-vm scp "$name:isara_jax/$workdir" "$output" --recurse \
        "${here[@]}" --worker=0
      ;;
  esac
}

stop() {
  on_hosts './isara_jax/launch/detached.sh isara_jax/runs/job --stop'
}

delete() {
  local state
  state=$(state_in_queue)
  if [ -n "$queued$state" ]; then
    show gcloud compute tpus queued-resources delete "$name" "${here[@]}" --force --quiet
  else
    show gcloud compute tpus tpu-vm delete "$name" "${here[@]}" --quiet
  fi
  deleted=yes
}

state_of_vm() { # empty: there is none
  show gcloud compute tpus tpu-vm list "${here[@]}" --format='value(name.basename(), state)' |
    of_this_name
}

state_in_queue() {
  show gcloud compute tpus queued-resources list "${here[@]}" \
    --format='value(name.basename(), state.state)' | of_this_name
}

of_this_name() {
  awk -v name="$name" '$1 == name { print $2 }'
}

on_hosts() {
  show gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=all --command="$1"
}

show() { # prints a command so that a shell can read it back, and runs it unless --dry_run
  local word line=
  for word in "$@"; do
    case $word in
      *\'*) line+=" $(printf %q "$word")" ;;
      *[!A-Za-z0-9_./:=@%+,-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "${line# }" >&3
  [ -n "$dry_run" ] || "$@"
}

still_costs() {
  if [ -z "${deleted-}" ]; then
    echo "Costs money until it is deleted, if it was made: $name in $zone." \
      "./launch/tpu_vm.sh delete --name=$name --zone=$zone"
  fi
  case $workdir in
    gs://*) echo "Costs money as long as it is there: $workdir" ;;
  esac
}

main

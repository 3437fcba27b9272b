#!/usr/bin/env bash
# Runs a command that outlives the connection it was started over, and shows what it prints until it
# ends, with its exit status. Called again while it runs, it starts nothing and shows the output.
#   launch/detached.sh FOLDER COMMAND...    FOLDER keeps its log, process number and exit status
#   launch/detached.sh FOLDER --stop
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"

running() {
  [ -e "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null
}

if [ "$1" = --stop ]; then
  # The whole group, and at once: checkpoints are atomic.
  if running; then kill -KILL -- "-$(cat "$folder/pid")"; fi
  exit
fi
if ! running; then
  echo 137 >"$folder/status" # unless the command gets to write its own
  # shellcheck disable=SC2016 # expanded inside
  setsid bash -c '"$@"; echo $? >"$0/status"' "$folder" "$@" >"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
fi
tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(cat "$folder/pid")" "$folder/log"
exit "$(cat "$folder/status")"

#!/bin/sh
# The process 1 of a node that waits for ranks: sshd. When the node is to stop, its ranks are told first: after their
# step rank 0 writes a checkpoint, and all of them end.
ranks() {
  for process in /proc/[0-9]*; do
    if grep -qz '^OMPI_COMM_WORLD_RANK=' "$process/environ" 2>/dev/null; then echo "${process#/proc/}"; fi
  done
}
stop() {
  for rank in $(ranks); do kill -TERM "$rank" 2>/dev/null; done
  while [ -n "$(ranks)" ]; do sleep 0.2; done
  kill "$sshd"
  exit 0
}
trap stop TERM INT
/usr/sbin/sshd -De &
sshd=$!
wait "$sshd"

#!/bin/sh
# The process 1 of a node of an MPI job: sshd, or what its arguments say, such as mpirun. When the node is to stop, its
# ranks are told first, and only they: after their step rank 0 writes a checkpoint, and all ranks end. mpirun itself
# would kill them a second after telling them.
ranks() {
  for process in /proc/[0-9]*; do
    if grep -qz '^OMPI_COMM_WORLD_RANK=' "$process/environ" 2>/dev/null; then echo "${process#/proc/}"; fi
  done
}
stop() {
  stopping=1
  for rank in $(ranks); do kill -TERM "$rank" 2>/dev/null; done
  while [ -n "$(ranks)" ]; do sleep 0.2; done
  [ "$kind" = launcher ] || kill "$child"
}
stopping=""
trap stop TERM INT
if [ $# -gt 0 ]; then
  kind=launcher
  "$@" &
else
  kind=node
  /usr/sbin/sshd -De &
fi
child=$!
wait "$child"
code=$?
if [ -n "$stopping" ]; then # the signal ended the first wait
  wait "$child"
  code=$?
fi
[ "$kind" = launcher ] || [ -z "$stopping" ] || code=0
exit "$code"

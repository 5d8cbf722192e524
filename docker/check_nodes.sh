# Sourced by check.sh. Two nodes as Kubeflow Trainer and the MPI operator start them: a key, a list of nodes, sshd on those that wait.
t=$(now)
KEYS=$WORK_DIR/ssh; rm -rf "$KEYS"; mkdir "$KEYS"; chmod 777 "$KEYS"
engine_client run --rm --label "$LABEL" --network=none -v "$KEYS:/keys" "$MPI_IMAGE" sh -c \
  "ssh-keygen -q -t ecdsa -b 521 -N '' -f /keys/id_rsa && cp /keys/id_rsa.pub /keys/authorized_keys && chmod 644 /keys/*"
if [ "$(id -u)" = 0 ]; then chown -R 0:10001 "$KEYS"; chmod 640 "$KEYS"/*; fi
printf 'node-0 slots=1\nnode-1 slots=1\n' >"$WORK_DIR/hostfile"
NETWORKS+=("$(engine_client network create --label "$LABEL" onward-check-mpi)")
node=("${hardened[@]}" --network onward-check-mpi -v "$KEYS:/home/onward/.ssh:ro" -v "$DATA:/work:ro"
  -v "$WORK_DIR/hostfile:/etc/mpi/hostfile:ro")
CIDS+=("$(engine_client run -d "${node[@]}" --hostname node-1 --name onward-check-node-1 --network-alias node-1 "$MPI_IMAGE")")
check "mpirun starts a rank on each of two nodes, over ssh" logged train-nodes.log engine_client run --rm "${node[@]}" \
  --hostname node-0 --network-alias node-0 -e OMPI_MCA_orte_default_hostfile=/etc/mpi/hostfile \
  -e OMPI_MCA_orte_keep_fqdn_hostnames=true -e "OMPI_MCA_plm_rsh_args=-o ConnectionAttempts=10" "$MPI_IMAGE" \
  node mpirun --bind-to none onward train lenet5 --data npz:digits.npz --epochs 2 --threads 1 --output /tmp/model.onnx
check "they were two, on two nodes" same "$(grep -c '^2 ranks: computing' "$LOGS/train-nodes.log")" 1
grep '^2 ranks' "$LOGS/train-nodes.log" | sed 's/^/     | /' || true
step "$t" "two nodes train 2 epochs"
# Either node is taken away in the middle of a run: a checkpoint is there, and the run goes on from it.
t=$(now)
CHECKPOINTS=$WORK_DIR/checkpoints; rm -rf "$CHECKPOINTS"; mkdir "$CHECKPOINTS"; chmod 777 "$CHECKPOINTS"
endless=(node mpirun --bind-to none onward train lenet5 --data npz:digits.npz --epochs 100000 --threads 1 --output /tmp/model.onnx
  --checkpoint /checkpoints/run.ckpt --resume auto)
launcher=("${node[@]}" --hostname node-0 --network-alias node-0 -v "$CHECKPOINTS:/checkpoints"
  -e OMPI_MCA_orte_default_hostfile=/etc/mpi/hostfile)
for stopped in node-1 node-0; do
  running=$(engine_client ps -q --filter name=onward-check-node-1)
  [ -n "$running" ] || engine_client start onward-check-node-1 >/dev/null
  written=$(stat -c %Y "$CHECKPOINTS/run.ckpt" 2>/dev/null || echo 0)
  cid=$(engine_client run -d "${launcher[@]}" "$MPI_IMAGE" "${endless[@]}"); CIDS+=("$cid")
  for _ in $(seq 300); do
    [ "$(stat -c %Y "$CHECKPOINTS/run.ckpt" 2>/dev/null || echo 0)" = "$written" ] || break
    sleep 0.2
  done
  started=$SECONDS; before=$(now)
  case $stopped in
    node-1) engine_client stop -t 60 onward-check-node-1 >/dev/null ;;
    *) engine_client stop -t 60 "$cid" >/dev/null ;;
  esac
  code=$(engine_client wait "$cid")
  engine_client logs "$cid" >"$LOGS/$stopped.log" 2>&1
  check "after $stopped is told to stop, all ranks end within 20 s (code $code)" test $((SECONDS - started)) -lt 20
  check "and rank 0 says where to go on" grep -q 'go on with --resume /checkpoints/run.ckpt' "$LOGS/$stopped.log"
  check "from a checkpoint of after that" awk -v a="$before" -v b="$(stat -c %.Y "$CHECKPOINTS/run.ckpt")" 'BEGIN{exit !(b > a)}'
done
check "the second of these runs went on from the first's checkpoint" sh -c "! grep -q 'epoch 1/' '$LOGS/node-0.log'"
step "$t" "a node is taken away, either kind"

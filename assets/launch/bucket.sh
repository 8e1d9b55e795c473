set -u
runs=$HOME/.local/share/ollama-tune/runs
name=@NAME@
kept=@KEPT@/$name.tar

# The run folder comes from the bucket to new machines. It goes there after each checkpoint and at the end, as
# one file: what lies there is whole, even if the machine is taken away.
if [ -f "$kept" ] && [ ! -d "$runs/$name" ]; then
  mkdir -p "$runs" "$runs.part" && tar -C "$runs.part" -xf "$kept" && mv "$runs.part/$name" "$runs" || exit
fi
keep() {
  tar -C "$runs" -cf "$kept.part" "$name" && mv "$kept.part" "$kept"
}
keep_checkpoints() {
  trap exit TERM
  seen=
  while sleep 5; do
    now=$(ls "$runs/$name/checkpoints" 2> /dev/null)
    if [ "$now" != "$seen" ] && keep 2> /dev/null; then seen=$now; fi
  done
}
[ "$SKYPILOT_NODE_RANK" != 0 ] || keep_checkpoints &
keeper=$!

(
@JOB@
)
status=$?
kill "$keeper" 2> /dev/null
wait "$keeper"
[ "$SKYPILOT_NODE_RANK" != 0 ] || [ ! -d "$runs/$name" ] || keep || exit
exit "$status"

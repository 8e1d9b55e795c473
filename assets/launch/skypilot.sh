set -u
export OLLAMA_TUNE_TRACK=yes
python=$HOME/ollama-tune/venv/bin/python
told=$("$python" -m ollama_tune.core.runs.cluster begin "$HOME/ollama-tune/run.yaml" @NAME@ @VALUES@) || exit
stage=${told%% *} run=${told#* }
[ "$stage" = none ] && exit 0
"$python" -m torch.distributed.run --nnodes="$SKYPILOT_NUM_NODES" --nproc-per-node=@PROCESSES@ \
  --node-rank="$SKYPILOT_NODE_RANK" --master-addr="${SKYPILOT_NODE_IPS%%$'\n'*}" --master-port=@PORT@ \
  --max-restarts=0 -m ollama_tune.core.train.worker "$run" --stage "$stage"

#!/bin/bash
@COMMENT@
@DIRECTIVES@

set -u
cd -- @FOLDER@ || exit 1
@ENVIRONMENT@
python=@PYTHON@
name=@NAME@-slurm-$SLURM_JOB_ID

# The worker starts what sends its figures to trackers, and has time for a checkpoint when it is told to end.
export OLLAMA_TUNE_TRACK=yes TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@GRACE@

# The run folder is made at the first start and found again after a requeue.
told=$("$python" -m ollama_tune.core.runs.cluster begin @FILE@ "$name" @VALUES@) || exit
stage=${told%% *} run=${told#* }
[ "$stage" = none ] && exit 0

# Some time before the job's limit SLURM sends TERM to this script alone. It asks the worker, by a file that
# every machine sees, to write a checkpoint and end.
ending=
trap 'ending=yes; interrupted=yes; touch -- "$run/stop"' TERM

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  --cpus-per-task=@CPUS@ --kill-on-bad-exit=1 \
  "$python" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=@PROCESSES@ \
  --max-restarts=0 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
  --rdzv-endpoint="${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))" \
  -m ollama_tune.core.train.worker "$run" --stage "$stage" > >(tee -a -- "$run/stdout.log") 2>&1 &
worker=$!

interrupted=yes
while [ -n "$interrupted" ]; do
  interrupted=
  wait "$worker"
  status=$?
done

# Out of time, or the machines are wanted for another job, and not done: into the queue again. A job that was
# cancelled is no longer RUNNING, one without a single step would come back for ever.
if [ "$ending$status" != 0 ] && [[ $(scontrol show job -o "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
  "$python" -m ollama_tune.core.runs.cluster again "$name" ${ending:+--asked} &&
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# Runs on the login node of scripts/slurm-test.sh: the batch scripts stop at a signal, requeue and resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
export TRAIN_PROGRAM=$root/tests/slurm/stand_in.sh
cd "$TMPDIR"

# until_true SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}
state() { squeue -h -j "$1" -o %T 2> /dev/null; }
is() { [ "$(state "$1")" = "$2" ]; }
has_come_to() { [ -s "$CHECKPOINT_FOLDER/step" ] && [ "$(cat "$CHECKPOINT_FOLDER/step")" -ge "$1" ]; }
finished() { [ -z "$(state "$1")" ] || is "$1" COMPLETED; }
# start_now JOB SECONDS: Slurm itself would wait two minutes. A little waiting is needed: the job's first step gets the
# number that it had before, and until a step that was cut off is cleared away on the nodes they refuse its successor.
start_now() {
  sleep "$2"
  scontrol update "JobId=$1" StartTime=now
}
give_up() {
  scontrol show job "$2" || true
  cat "$CHECKPOINT_FOLDER/history" ./*-"$2".out || true
  die "$1"
}

for script in ${1:-train train-mpirun}; do
  say "$script.sbatch: stopped by the signal that comes before the time limit"
  export CHECKPOINT_FOLDER=$TMPDIR/$script-stop
  job=$(sbatch --parsable "$root/slurm/$script.sbatch" --max-steps 60)
  until_true 60 has_come_to 5 || give_up 'did not start' "$job"
  scancel --batch --signal=USR1 "$job"
  until_true 60 is "$job" PENDING || give_up 'was not requeued' "$job"
  start_now "$job" 2
  until_true 90 finished "$job" || give_up 'did not finish' "$job"
  history=$(paste -sd, "$CHECKPOINT_FOLDER/history")
  [[ $history =~ ^"start at 0,end at "([0-9]+)",start at "([0-9]+)",end at 60"$ ]] || give_up "history $history" "$job"
  [ "${BASH_REMATCH[1]}" = "${BASH_REMATCH[2]}" ] || give_up "resumed elsewhere: $history" "$job"

  say "$script.sbatch: a rank is killed"
  export CHECKPOINT_FOLDER=$TMPDIR/$script-kill
  job=$(sbatch --parsable "$root/slurm/$script.sbatch" --max-steps 40 --die-at 10)
  until_true 60 has_come_to 5 || give_up 'did not start' "$job"
  until_true 60 is "$job" PENDING || give_up 'was not requeued' "$job"
  start_now "$job" 6
  until_true 90 finished "$job" || give_up 'did not finish' "$job"
  grep -qx 'end at 40' "$CHECKPOINT_FOLDER/history" || give_up 'did not come to the end' "$job"
done

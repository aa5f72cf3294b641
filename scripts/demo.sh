#!/usr/bin/env bash
# Sets up, builds, and trains Fashion-MNIST on 4 ranks of this machine: 2 workers and 2 servers. On the way one rank is
# killed with kill -9 and the training resumed from its newest checkpoint. Ends with 0 only if at least 87 % of the
# 10,000 test images are recognised.
#
#   scripts/demo.sh [more arguments for dtr_train]
#
# DEMO_VICTIM (default 1) is the rank that is killed, DEMO_KILL_AFTER (default 1000) the step after which it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
victim=${DEMO_VICTIM:-1} kill_after=${DEMO_KILL_AFTER:-1000}
wanted=0.87
folder=$root/build/demo
train=$root/build/release/apps/dtr_train

"$root/scripts/setup.sh"
say 'building (release; log: build/release.log)'
configure_and_build release dtr_train
mpi_environment
rm -rf "$folder"
mkdir -p "$folder"
started=$SECONDS

# Every rank of this demo, and nothing else, carries this in its environment.
mark=DTR_TEST_DEMO=$$
export "${mark?}"
ranks() { grep -laF "$mark" /proc/[0-9]*/environ 2> /dev/null | cut -d/ -f3; }
process_of_rank() {
  local process
  for process in $(ranks); do
    if grep -qzx "OMPI_COMM_WORLD_RANK=$1" "/proc/$process/environ" 2> /dev/null; then
      echo "$process"
      return
    fi
  done
  return 1
}
launcher=
clean_up() {
  [ -z "$launcher" ] || kill "$launcher" 2> /dev/null || true
}
trap clean_up EXIT
trap 'exit 1' INT TERM

launch() {
  mpirun -n 4 "$train" --servers 2 --checkpoint-dir "$folder/checkpoints" --checkpoint-every 50 --resume \
    --json "$folder/result.json" "$@" 2> "$folder/mpirun.log"
}
newest_step() { # of the complete checkpoints; 0 without any
  local newest
  newest=$(find "$folder/checkpoints" -maxdepth 1 -name 'step_*' ! -name '*.*' -printf '%f\n' 2> /dev/null | sort | tail -n 1)
  echo $((10#0${newest#step_}))
}

say 'training on 4 ranks: 2 workers, 2 servers'
launch "$@" &
launcher=$!
until [ "$(newest_step)" -ge "$kill_after" ]; do
  kill -0 "$launcher" 2> /dev/null || {
    cat "$folder/mpirun.log" >&2
    die 'the training ended before it could be disturbed'
  }
  sleep 0.05
done
process=$(process_of_rank "$victim") || die "rank $victim is not there"
kill -9 "$process"
echo
say "kill -9 of rank $victim (process $process); newest checkpoint: step $(newest_step)"
wait "$launcher" && die 'the training survived a kill that it should not have'
launcher=

say 'resuming'
launch "$@" &
launcher=$!
if ! wait "$launcher"; then
  cat "$folder/mpirun.log" >&2
  die 'the resumed training failed'
fi
launcher=

echo
say "done in $((SECONDS - started)) s; the whole result: build/demo/result.json"
python3 - "$folder/result.json" "$wanted" << 'SUMMARY'
import json
import sys

result = json.load(open(sys.argv[1]))
wanted = float(sys.argv[2])
accuracy = result["test_accuracy"]
busy = [(name, result[f"{name}_seconds"]) for name in ("push_pull", "compute", "data")]
print(f"   test accuracy      {accuracy:.4f}   (at least {wanted} wanted)")
print(f"   steps              {result['steps']}")
print(f"   samples a second   {result['samples_per_second']:,.0f}")
print(f"   path to servers    {result['transport']}")
for name, seconds in busy:
    print(f"   {name:<18} {seconds:.1f} s of the resumed run")
print(f"   parameter digest   {result['parameter_digest']}")
sys.exit(0 if accuracy >= wanted else f"demo: accuracy {accuracy:.4f} is below {wanted}")
SUMMARY

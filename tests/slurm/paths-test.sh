#!/usr/bin/env bash
# Runs on the login node of scripts/slurm-test.sh: ranks of one node reach each other by shared memory, ranks of two
# nodes by TCP.   paths-test.sh DTR_INFO
set -euo pipefail
output=$(srun -N2 --ntasks-per-node=2 "$1" 2>&1) || {
  printf '%s\n' "$output"
  exit 1
}
bad=0
for ((from = 0; from < 4; ++from)); do
  for ((to = 0; to < 4; ++to)); do
    if [ $from = $to ]; then kind=loopback; elif [ $((from / 2)) = $((to / 2)) ]; then kind=shm; else kind=tcp; fi
    grep -qE "^ *$from -> $to  $kind" <<< "$output" || {
      echo "rank $from to rank $to is not by $kind"
      bad=1
    }
  done
done
[ $bad = 0 ] || printf '%s\n' "$output"
exit $bad

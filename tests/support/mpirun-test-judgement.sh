#!/usr/bin/env bash
# mpirun-test.sh itself: what it must accept, what it must refuse, and that nothing is left.
set -uo pipefail
judge=$(dirname "${BASH_SOURCE[0]}")/mpirun-test.sh
bad=0

# The $$ in the sleeps tells them from those of another run of this test.
# expect pass|fail WORDS-IN-THE-OUTPUT OPTIONS... -- PROGRAM...
expect() {
  local wanted=$1 words=$2 output got
  shift 2
  output=$("$judge" "$@" 2>&1) && got=pass || got=fail
  if [ $got != "$wanted" ] || ! grep -qF -- "$words" <<< "$output"; then
    printf 'expected %s with "%s", got %s from %s\n%s\n' "$wanted" "$words" "$got" "$*" "$output"
    bad=1
  fi
}

rank='r=$OMPI_COMM_WORLD_RANK; v=$DTR_TEST_VERDICT_FOLDER/rank.$r;'
expect pass '' -n 2 -- bash -c "$rank echo ok > \$v"
expect fail 'rank 1 left no verdict' -n 2 -- bash -c "$rank [ \$r = 1 ] || echo ok > \$v"
expect fail 'rank 1: 3 cases failed' -n 2 -- bash -c "$rank [ \$r = 1 ] && echo 3 cases failed > \$v || echo ok > \$v"
expect fail 'mpirun returned 3' -n 2 -- bash -c "$rank echo ok > \$v; exit 3"
expect fail 'still running after' -n 1 -t 1 -- sleep "29983.$$"
expect fail 'still alive after mpirun' -n 1 -- bash -c "$rank setsid sleep 29984.$$ > /dev/null 2>&1 & echo ok > \$DTR_TEST_VERDICT_FOLDER/rank.0"
expect pass '' -n 2 -d 1 -- bash -c "$rank [ \$r = 1 ] && kill -9 \$\$; sleep 0.2; echo ok > \$v"
expect fail 'rank 1 was to die and did not' -n 2 -d 1 -- bash -c "$rank echo ok > \$v"
expect fail 'no such program' -n 1 -d 0 -- /no/such/program
if pgrep -fx "sleep 2998[34]\.$$" > /dev/null; then
  echo 'a process was left'
  bad=1
fi
exit $bad

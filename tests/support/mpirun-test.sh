#!/usr/bin/env bash
# Runs one test program under mpirun and judges it by what every rank wrote, not by mpirun's exit code alone: with
# --enable-recovery mpirun returns 0 whatever happened.
#
#   mpirun-test.sh -n RANKS [-t SECONDS] [-d RANK,...] [-m "LAUNCHER OPTIONS"] [-s NODES] -- PROGRAM [ARGUMENT...]
#
# With -s, srun starts the ranks instead, spread evenly over that many nodes of scripts/slurm-test.sh; the script then
# returns 77 (skipped) where that cannot be done.
# Each rank finds DTR_TEST_VERDICT_FOLDER in its environment and, when it is content, writes `rank.N` there, whose first
# line is "ok" (tests/support/mpi_main.cpp does it for programs made of GoogleTest cases). The test passes if
#   - it ends within SECONDS (default 60, stretched by DTR_TEST_TIME_SCALE),
#   - every rank that is not named by -d wrote "ok",
#   - no rank named by -d wrote anything: those are to die by SIGKILL before they end; naming one turns on
#     --enable-recovery, so that the others live on,
#   - without -d, the launcher returned 0,
#   - no process of the run is left.
# Whatever happens, no process, no temporary folder and no shared-memory file stays.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"

ranks=0 seconds=60 dead='' nodes=0 launcher_options=()
while getopts 'n:t:d:m:s:' option; do
  case $option in
    n) ranks=$OPTARG ;;
    t) seconds=$OPTARG ;;
    d) dead=$OPTARG ;;
    m) read -r -a launcher_options <<< "$OPTARG" ;;
    s) nodes=$OPTARG ;;
    *) die 'see the head of this file' ;;
  esac
done
shift $((OPTIND - 1))
[ "$ranks" -gt 0 ] && [ $# -gt 0 ] || die 'needs -n RANKS and a program'
command -v "$1" > /dev/null || die "$1: no such program" # mpirun --enable-recovery would wait for it for ever
seconds=$(awk "BEGIN { print int($seconds * ${DTR_TEST_TIME_SCALE:-1} + 1) }")
mpi_environment

folder=$(mktemp -d "${TMPDIR:-/tmp}/dtr-mpi-XXXXXX")
# Open MPI's own shared memory goes where a rank that dies by SIGKILL cannot leave it behind for good.
shared=$(mktemp -d /dev/shm/dtr-mpi-XXXXXX 2> /dev/null || echo "$folder")
export OMPI_MCA_btl_vader_backing_directory=$shared OMPI_MCA_orte_tmpdir_base=$folder

of_this_run() { grep -laF "DTR_TEST_VERDICT_FOLDER=$folder" /proc/[0-9]*/environ 2> /dev/null | cut -d/ -f3; }
clean_up() {
  local left
  left=$(of_this_run)
  # shellcheck disable=SC2086
  [ -z "$left" ] || kill -9 $left 2> /dev/null
  rm -rf "$folder" "$shared"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

if [ "$nodes" = 0 ]; then
  launcher=(mpirun --tag-output -n "$ranks")
  [ -z "$dead" ] || launcher+=(--enable-recovery)
else
  # Here the ranks' /tmp and /dev/shm are the nodes' affair.
  unset OMPI_MCA_btl_vader_backing_directory OMPI_MCA_orte_tmpdir_base
  launcher=("$root/scripts/slurm-test.sh" -n "$nodes" -t "$seconds" --
    srun --label --mpi=pmix -N "$nodes" --ntasks-per-node=$((ranks / nodes)))
  [ -z "$dead" ] || launcher+=(--kill-on-bad-exit=0)
fi
env DTR_TEST_VERDICT_FOLDER="$folder" timeout --kill-after=5 "$seconds" \
  "${launcher[@]}" "${launcher_options[@]}" "$@" < /dev/null &
wait $!
code=$?
[ "$nodes" = 0 ] || [ $code != 77 ] || exit 77

bad=0
complain() {
  echo "mpirun-test: $*"
  bad=1
}
if [ $SECONDS -ge "$seconds" ]; then # not by the code: srun returns 137 for a rank that was killed
  complain "still running after $seconds s"
elif [ -z "$dead" ] && [ $code != 0 ]; then
  complain "${launcher[0]##*/} returned $code"
fi

for ((rank = 0; rank < ranks; ++rank)); do
  verdict=$folder/rank.$rank
  case ,$dead, in
    *,$rank,*) [ ! -e "$verdict" ] || complain "rank $rank was to die and did not: $(cat "$verdict")" ;;
    *)
      if [ ! -e "$verdict" ]; then
        complain "rank $rank left no verdict"
      elif [ "$(head -n 1 "$verdict")" != ok ]; then
        complain "rank $rank: $(cat "$verdict")"
      fi
      ;;
  esac
done

for ((i = 0; i < 100; ++i)); do # a rank may take a moment to end after the launcher has
  left=$(of_this_run)
  [ -n "$left" ] || break
  sleep 0.1
done
[ -z "$left" ] || complain "still alive after ${launcher[0]##*/}: $(ps -o pid=,stat=,args= -p "$(paste -sd, <<< "$left")")"
exit $bad

#!/usr/bin/env bash
# Runs one GoogleTest program in one boot of scripts/rdma-vm.sh and judges it by the report that it wrote, not by an exit
# status alone: a program that died, was cut off or ran no test at all leaves no good report.
#
#   vm-test.sh [-r RAILS] [-t SECONDS] [-m MIB] -- PROGRAM [ARGUMENT...]
#
# The test passes if the program returned 0 within SECONDS (default 120, stretched by DTR_TEST_TIME_SCALE) and its report
# counts at least one test that ran and none that failed. It is skipped (77) where there can be no virtual machine.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"

rails=1 seconds=120 memory=1024
while getopts 'r:t:m:' option; do
  case $option in
    r) rails=$OPTARG ;;
    t) seconds=$OPTARG ;;
    m) memory=$OPTARG ;;
    *) die 'see the head of this file' ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || die 'needs a program'
seconds=$(awk "BEGIN { print int($seconds * ${DTR_TEST_TIME_SCALE:-1} + 1) }")

folder=$(mktemp -d "${TMPDIR:-/tmp}/dtr-vm-test-XXXXXX")
machine=''
clean_up() {
  [ -z "$machine" ] || kill "$machine" 2> /dev/null && wait "$machine" 2> /dev/null
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

# DTR_TEST_VM: a stand-in for the script, for the test of this one.
"${DTR_TEST_VM:-$root/scripts/rdma-vm.sh}" --rails "$rails" --timeout "$seconds" --memory "$memory" --writable "$folder" \
  -- "$@" "--gtest_output=xml:$folder/report.xml" &
machine=$!
wait $machine
code=$?
machine=''
[ $code != 77 ] || [ -e "$folder/report.xml" ] || exit 77

bad=0
complain() {
  echo "vm-test: $*"
  bad=1
}
count() { sed -n "/<testsuites/{s/.* $1=\"\([0-9]*\)\".*/\1/p;q}" "$folder/report.xml"; }

[ $code = 0 ] || complain "the program returned $code"
if [ ! -s "$folder/report.xml" ]; then
  complain 'the program left no report'
elif ! tail -n 1 "$folder/report.xml" | grep -q '^</testsuites>'; then
  complain 'the report is cut off'
else
  total=$(count tests) failed=$(count failures) errors=$(count errors)
  ran=$(grep -c '<testcase .*status="run" result="completed"' "$folder/report.xml")
  [ "${failed:-1}" = 0 ] && [ "${errors:-1}" = 0 ] || complain "$failed failures and $errors errors in $total tests"
  [ "$ran" -gt 0 ] || complain 'no test ran'
  echo "vm-test: $ran of $total tests ran, $failed failed"
fi
exit $bad

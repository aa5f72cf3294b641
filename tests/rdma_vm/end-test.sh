#!/usr/bin/env bash
# However a run ends, the status says so, and nothing is left: no process, no file.
source "$(dirname "$0")/common.sh"

mkdir "$folder/tmp"
export TMPDIR=$folder/tmp
nothing_left() {
  expect 'temporary files are left' [ -z "$(ls -A "$TMPDIR")" ]
  expect 'processes are left' [ -z "$(grep -laF "RDMA_VM_TEST_MARK=$folder" /proc/[0-9]*/environ 2> /dev/null)" ]
}

vm 124 --timeout 8 -- bash -c 'echo begun; trap "" TERM; sleep 1000; sleep 1000'
expect 'the output before the end' grep -qx begun "$folder/out"
expect 'the message' grep -qx 'rdma-vm: out of time: 8 s' "$folder/err"
nothing_left

vm 125 -- bash -c 'echo begun; sleep 1; echo c > /proc/sysrq-trigger; sleep 100'
expect 'the message' grep -q 'ended without a status' "$folder/err"
expect "the console's last words" grep -q 'Kernel panic' "$folder/err"
nothing_left

# A signal to the script ends it at once, in whatever it is.
for pair in INT:130 TERM:143; do
  signal=${pair%:*}
  rm "$folder/out"
  # Not by bash's own &, which has its children ignore SIGINT.
  RDMA_VM_TEST_MARK=$folder python3 -c 'import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.exit(subprocess.call(sys.argv[1:]))' "$root/scripts/rdma-vm.sh" --quiet -- bash -c 'echo begun; sleep 1000' \
    > "$folder/out" 2> "$folder/err" < /dev/null &
  parent=$!
  for ((i = 0; i < 1200; ++i)); do
    ! grep -qs begun "$folder/out" || break
    sleep 0.1
  done
  expect 'there is a script to end' kill -"$signal" "$(pgrep -P $parent)"
  [ $bad = 0 ] || pkill -TERM -P $parent
  wait $parent
  status=$?
  expect "SIG$signal: status $status" [ $status = "${pair#*:}" ]
  nothing_left
done
exit $bad

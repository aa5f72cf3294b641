# What the tests of scripts/rdma-vm.sh share. Sourced, never run.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
# shellcheck disable=SC2034
here=$root/tests/rdma_vm
bad=0
folder=$(mktemp -d "${TMPDIR:-/tmp}/dtr-rdma-vm-test-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM HUP

# vm EXPECTED-STATUS ARGUMENT...: one run; its output is in $folder/out and $folder/err.
vm() {
  local expected=$1 status
  shift
  RDMA_VM_TEST_MARK=$folder "$root/scripts/rdma-vm.sh" --quiet "$@" > "$folder/out" 2> "$folder/err"
  status=$?
  if [ $status = 77 ] && [ "$expected" != 77 ]; then
    cat "$folder/err"
    exit 77
  fi
  [ $status = "$expected" ] || complain "status $status instead of $expected"
}

complain() {
  echo "FAILED: $*"
  [ $bad = 1 ] || head -c 4000 "$folder/out" "$folder/err"
  bad=1
}
expect() { # WORDS COMMAND...
  local words=$1
  shift
  "$@" || complain "$words"
}

# What the tests that run inside a guest share. Sourced, never run; a script that sources it goes on in a guest made with
# the options in $vm_options.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
# shellcheck disable=SC2154
[ -n "${RDMA_VM_HOST:-}" ] || exec "$root/scripts/rdma-vm.sh" --timeout 900 "${vm_options[@]}" -- "$0"

bad=0
complain() {
  echo "FAILED: $*"
  bad=1
}
expect() { # WORDS COMMAND...
  local words=$1
  shift
  "$@" || complain "$words"
}

listens() { ss -ltnH "sport = :$1" | grep -q .; }

# between SERVER CLIENT SECONDS PROGRAM OPTION...: one of the two-ended test programs of ibverbs-utils or perftest between
# two devices. They find each other over TCP inside the kernel, which no fault on a wire disturbs.
port=18600
between() {
  local server=$1 client=$2 seconds=$3 try status
  shift 3
  port=$((port + 1))
  timeout "$seconds" "$@" -d "$server" -p $port > /tmp/server 2>&1 &
  for ((try = 0; try < 300; ++try)); do
    ! listens $port || break
    sleep 0.1
  done
  timeout "$seconds" "$@" -d "$client" -p $port 127.0.0.1 > /tmp/client 2>&1
  status=$?
  [ $status = 0 ] || kill %% 2> /dev/null
  wait %% 2> /dev/null && [ $status = 0 ]
}

#!/usr/bin/env bash
# Two machines: two kernels, a link between them, mpirun over both.
vm_options=(--hosts 2)
source "$(dirname "$0")/inside.sh"
expect 'the first machine' [ "$(hostname) $RDMA_VM_HOST $RDMA_VM_ADDRESSES" = 'vm1 1 10.77.0.1' ]

kernels=$(timeout 300 mpirun -n 2 sh -c 'echo "$(hostname) $RDMA_VM_ADDRESSES $PWD $(cat /proc/sys/kernel/random/boot_id)"' | sort)
expect "a rank on each: $kernels" [ "$(cut -d' ' -f1-3 <<< "$kernels")" = "vm1 10.77.0.1 $PWD"$'\n'"vm2 10.77.0.2 $PWD" ]
expect "two kernels: $kernels" [ "$(cut -d' ' -f4 <<< "$kernels" | uniq | wc -l)" = 2 ]

echo here > /tmp/only-here
"$RDMA_VM_SHELL" vm2 'echo "$0 word"; echo to stderr >&2; [ -e /tmp/only-here ] || exit 37' > /tmp/out 2> /tmp/err
expect 'status of a remote command, which does not see what is written here' [ $? = 37 ]
expect 'outputs of a remote command' [ "$(cat /tmp/out /tmp/err)" = $'/bin/bash word\nto stderr' ]

"$RDMA_VM_SHELL" vm2 'timeout 120 ibv_rc_pingpong -d rxe0 -g 1 -n 100 > /tmp/server 2>&1 &
  for try in {1..300}; do ss -ltnH "sport = :18515" | grep . && exit; sleep 0.1; done; cat /tmp/server'
expect 'ping-pong between the machines' timeout 120 ibv_rc_pingpong -d rxe0 -g 1 -n 100 vm2
exit $bad

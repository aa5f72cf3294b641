#!/usr/bin/env bash
# One device: it is there and active, with its GID where docs/verbs.md says, and the usual programs work on it; so do
# names and mpirun.
vm_options=()
source "$(dirname "$0")/inside.sh"

expect 'ibv_devinfo names rxe0, active' bash -c 'ibv_devinfo -d rxe0 | grep PORT_ACTIVE'
expect 'the only device' [ "$(ls /sys/class/infiniband)" = rxe0 ]
expect 'GID 1' [ "$(< /sys/class/infiniband/rxe0/ports/1/gids/1)" = 0000:0000:0000:0000:0000:ffff:0a4d:0001 ]
expect 'variables' [ "$RDMA_VM_DEVICES $RDMA_VM_INTERFACES $RDMA_VM_ADDRESSES" = 'rxe0 rail0 10.77.0.1' ]
expect 'memory may be locked' [ "$(ulimit -l)" = unlimited ]
expect 'the host has a name' getent hosts "$(hostname)"
expect 'ibv_rc_pingpong' between rxe0 rxe0 120 ibv_rc_pingpong -g 1 -n 100
expect 'ib_write_bw' between rxe0 rxe0 120 ib_write_bw -x 1 -F -n 200 -s 65536
expect 'ib_write_bw says how much' grep -qE '^ 65536 +200 ' /tmp/client
expect 'mpirun' [ "$(timeout 300 mpirun -n 4 sh -c 'echo $OMPI_COMM_WORLD_RANK' | sort | paste -sd ' ')" = '0 1 2 3' ]
exit $bad

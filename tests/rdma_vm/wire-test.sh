#!/usr/bin/env bash
# Two devices and the wire between them: what they send takes it, so faults on it are seen.
vm_options=(--rails 2)
source "$(dirname "$0")/inside.sh"

both_ports() { # STATE: soon, for a kernel tells of its links with delay
  local try
  for ((try = 0; try < 300; ++try)); do
    [ "$(grep -l ": $1" /sys/class/infiniband/rxe[01]/ports/1/state | wc -l)" != 2 ] || return 0
    sleep 0.1
  done
  return 1
}
counter() { cat "/sys/class/infiniband/$1/ports/1/hw_counters/$2"; }
pingpong() { between rxe1 rxe0 "$1" ibv_rc_pingpong -g 1 -n "$2"; }
# Its own figure, not its start-up: "20 iters in 2.01 seconds = ...".
took_tenths() { sed -n 's/^.* iters in \([0-9]*\)\.\([0-9]\).*/\1\2/p' /tmp/client; }

expect 'both active' both_ports ACTIVE
sent=$(counter rxe0 sent_pkts) received=$(< /sys/class/net/rail1/statistics/rx_packets)
expect 'ping-pong over the wire' pingpong 120 100
sent=$(($(counter rxe0 sent_pkts) - sent)) received=$(($(< /sys/class/net/rail1/statistics/rx_packets) - received))
expect "sent $sent packets" [ $sent -ge 100 ]
expect "only $received of $sent packets came over the wire" [ $received -ge $sent ]
expect 'ib_write_bw over the wire' between rxe1 rxe0 120 ib_write_bw -x 1 -F -n 200 -s 65536

tc qdisc add dev rail0 root netem delay 100ms
expect 'ping-pong with delay' pingpong 120 20
expect '20 times 100 ms of delay take 2 s' [ "$(took_tenths)" -ge 19 ]

tc qdisc change dev rail0 root netem loss 10% # seven retries lose one message in some 100,000; with 20 % one in 4,000
again=$(counter rxe0 completer_retry_err)
expect 'ping-pong with loss' pingpong 120 50
expect 'something was sent again' [ "$(counter rxe0 completer_retry_err)" -gt "$again" ]

tc qdisc change dev rail0 root netem loss 100%
pingpong 3 5 && complain 'ping-pong works though all is lost'
tc qdisc del dev rail0 root

for end in rail0 rail1; do
  ip link set $end down
  expect "$end down: both ports are" both_ports DOWN
  pingpong 5 5 && complain "ping-pong works though $end is down"
  ip link set $end up
  expect "$end up: both ports are" both_ports ACTIVE
  expect "$end up again: ping-pong" pingpong 120 50
done
exit $bad

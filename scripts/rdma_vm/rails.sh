# The RDMA devices of a guest. Sourced by guest.sh, where rails, hosts and RDMA_VM_HOST are set.
# shellcheck shell=bash
# shellcheck disable=SC2154
addresses=()

# One guest, one rail: a device whose peer is itself.
make_single_rail() {
  ip link add rail0 mtu 4200 type dummy
  add_address rail0 10.77.0.1
}

# One guest, rails 2w and 2w+1 at the two ends of wire w. Both addresses belong to this kernel, which would hand packets
# between them over by the shortest way; the rules make it send them over the wire and take what comes out of it.
make_wire() {
  local wire=$1 end key
  local a=rail$((2 * wire)) b=rail$((2 * wire + 1)) at_a=10.77.$wire.1 at_b=10.77.$wire.2
  ip link add "$a" mtu 4200 type veth peer name "$b" mtu 4200
  add_address "$a" "$at_a"
  add_address "$b" "$at_b"
  for end in "$a" "$b"; do
    for key in accept_local=1 rp_filter=0 arp_filter=0 arp_ignore=1; do
      echo "${key#*=}" > "/proc/sys/net/ipv4/conf/$end/${key%=*}"
    done
    ip rule add pref 10 iif "$end" lookup local
  done
  # The devices ask for a route by interface: the interface's own one does, and comes back by itself with the link.
  ip rule add pref 20 to "$at_b" oif "$a" lookup main
  ip rule add pref 20 to "$at_a" oif "$b" lookup main
  # Sockets ask by address.
  ip rule add pref 21 from "$at_a" to "$at_b" lookup $((100 + 2 * wire))
  ip rule add pref 21 from "$at_b" to "$at_a" lookup $((101 + 2 * wire))
  ip link set "$a" up
  ip link set "$b" up
  ip route add "$at_b" dev "$a" src "$at_a" table $((100 + 2 * wire))
  ip route add "$at_a" dev "$b" src "$at_b" table $((101 + 2 * wire))
}

make_wires() {
  local wire
  echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
  for ((wire = 0; 2 * wire < rails; ++wire)); do make_wire $wire; done
  ip rule add pref 30 lookup local
  ip rule del pref 0
}

# Several guests: the network cards that QEMU gave, known by their hardware addresses (52:54:00:77:RAIL:HOST; rail ff
# joins the guests for everything but RDMA).
name_cards() {
  local card name
  modprobe virtio_net
  for card in /sys/class/net/*; do
    case $(< "$card/address") in
      52:54:00:77:ff:*)
        ip link set "${card##*/}" name net0
        ip address add "10.76.0.$RDMA_VM_HOST/24" dev net0
        ip link set net0 up
        ;;
      52:54:00:77:*)
        name=$(< "$card/address")
        name=rail$((16#${name:12:2}))
        ip link set "${card##*/}" name "$name"
        ip link set "$name" mtu 4200
        ;;
    esac
  done
  for ((rail = 0; rail < rails; ++rail)); do add_address "rail$rail" "10.77.$rail.$RDMA_VM_HOST"; done
}

add_address() { # INTERFACE ADDRESS
  ip address add "$2/24" dev "$1"
  addresses+=("$2")
}

# A device is ready when its port is active and the address has become GID 1 (0 is the link-local one).
device_ready() {
  local port=/sys/class/infiniband/$1/ports/1
  [[ $(< "$port/state") == *ACTIVE* && $(< "$port/gids/1") == 0000:0000:0000:0000:0000:ffff:* ]]
}

make_rails() {
  local rail try
  if [ "$hosts" != 1 ]; then
    name_cards
  elif [ "$rails" = 1 ]; then
    make_single_rail
  else
    make_wires
  fi
  for ((rail = 0; rail < rails; ++rail)); do
    ip link set "rail$rail" up
    rdma link add "rxe$rail" type rxe netdev "rail$rail" || return
  done
  for ((rail = 0; rail < rails; ++rail)); do
    for ((try = 0; try < 100; ++try)); do
      device_ready "rxe$rail" 2> /dev/null && continue 2
      sleep 0.1
    done
    echo "rxe$rail did not become active"
    return 1
  done
}

#!/usr/bin/env bash
# Runs a command on a machine with real RDMA devices: a virtual one, with soft-RoCE, on this machine's own files.
#
#   scripts/rdma-vm.sh [OPTION...] [--] COMMAND [ARGUMENT...]
#   scripts/rdma-vm.sh ibv_devinfo
#   scripts/rdma-vm.sh --rails 2 --writable out -- mpirun -n 4 build/release/apps/dtr_info
#
#   --rails N      1 (default): device rxe0 on interface rail0, 10.77.0.1. 2: rxe0 and rxe1 with a wire from rail0
#                  (10.77.0.1) to rail1 (10.77.0.2), on which `tc qdisc` and `ip link` make faults. 4: two such wires
#   --hosts N      1 (default) or 2: two machines; the command runs on the first, mpirun starts ranks on both. With
#                  --rails 1 or 2, of which each joins the two: 10.77.RAIL.HOST
#   --writable DIR keep what is written below DIR (repeatable; made if missing). All other writes are lost at the end
#   --timeout S    the command's time (default 600)
#   --memory MIB, --cpus N   of each virtual machine (default 1024, this machine's but at most 4)
#   --accelerator A   kvm, tcg (emulation), or auto (default): kvm if a kernel boots with it
#   --console      also print the kernel's console at the end
#   --quiet        say nothing of one's own unless something is wrong
#
# Folder, environment and arguments are the caller's, exactly; the command runs as root and its standard input is
# /dev/null. Its output, error output and exit status are the script's. Other statuses: 124 out of time, 125 the virtual
# machine failed, 77 this machine cannot do it. /dev, /proc and /sys are the guest's own. RDMA_VM_DEVICES,
# RDMA_VM_INTERFACES and RDMA_VM_ADDRESSES name what there is. What is missing (QEMU and the like) is installed; from
# then on any user can run it, several at a time. docs/verbs.md says more.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PATH=$PATH:/usr/sbin:/sbin
parts=$root/scripts/rdma_vm
boot_limit=300 # seconds until the command starts: three on an idle machine, forty on one with eight busy processes a core

complain() { echo "rdma-vm: $*" >&2; }
cannot() {
  complain "skipped: $*"
  exit 77
}
usage() {
  complain "$* (see --help)"
  exit 2
}

# --- what is asked for -----------------------------------------------------------------------------------------------

cores=$(nproc)
rails=1 hosts=1 writable=() timeout=600 memory=1024 cpus=$((cores < 4 ? cores : 4)) accelerator=auto console='' quiet=''
number() { # OPTION VALUE
  [[ $2 =~ ^[1-9][0-9]{0,6}$ ]] || usage "$1: $2 is not a positive number"
}
while [ $# -gt 0 ]; do
  option=$1
  case $option in
    --console) console=1 ;;
    --quiet) quiet=1 ;;
    -h | --help)
      sed -n '2,26s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --rails | --hosts | --timeout | --memory | --cpus)
      [ $# -gt 1 ] || usage "$option needs a value"
      number "$option" "$2"
      printf -v "${option#--}" %d "$2"
      shift
      ;;
    --writable | --accelerator)
      [ $# -gt 1 ] || usage "$option needs a value"
      if [ "$option" = --writable ]; then writable+=("$2"); else accelerator=$2; fi
      shift
      ;;
    -*) usage "unknown option $option" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || usage 'no command'
case $hosts:$rails in
  1:[124] | 2:[12]) ;;
  *) usage "--hosts $hosts --rails $rails: there is one host with 1, 2 or 4 rails, or two with 1 or 2" ;;
esac
case $accelerator in auto | kvm | tcg) ;; *) usage "--accelerator $accelerator" ;; esac
for ((i = 0; i < ${#writable[@]}; ++i)); do
  mkdir -p -- "${writable[i]}" || exit 2
  writable[i]=$(realpath -- "${writable[i]}" && echo .) # the dot keeps a name's own line ends
  writable[i]=${writable[i]%$'\n.'}
  [ "${writable[i]}" != / ] || usage '--writable /: name the folders'
done
[ ${#writable[@]} = 0 ] || mapfile -d '' writable < <(printf '%s\0' "${writable[@]}" | sort -zu) # outer ones first

# --- what it takes ---------------------------------------------------------------------------------------------------

missing_program() {
  local program
  for program in qemu-system-x86_64 busybox cpio modprobe depmod ip rdma tc xz python3 ibv_devinfo ib_write_bw; do
    command -v $program > /dev/null || {
      echo $program
      return
    }
  done
  [[ $(LC_ALL=C ldd "$(command -v busybox)" 2>&1) == *'not a dynamic'* ]] || echo busybox-static
}

prepare() {
  [ "$(uname -m)" = x86_64 ] || cannot "the guest runs this machine's programs, and its kernel is for x86_64"
  if [ -n "$(missing_program)" ]; then
    "$root/scripts/setup.sh" --rdma >&2 || cannot "$(missing_program) is not installed, nor could it be"
  fi
  local base=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  cache=${base:-$root/build}/libdtr/rdma-vm
  mkdir -p "$cache" 2> /dev/null && [ -w "$cache" ] || cache=$root/build/libdtr/rdma-vm
  if [ -n "$quiet" ]; then exec 3> "$folder/told"; else exec 3>&2; fi
  setsid "$parts/image.sh" "$cache" > "$folder/image" 2>&3 & # a process group, to be ended whole
  builder=$!
  exec 3>&-
  if ! wait $builder; then
    [ -z "$quiet" ] || cat "$folder/told" >&2
    cannot 'no kernel to boot'
  fi
  builder=''
  image=$(< "$folder/image")
  (cd "$parts" && echo init | cpio --quiet -o -H newc -R 0:0) > "$folder/init.cpio" || cannot 'cpio failed'
  cat "$image/modules.cpio" "$folder/init.cpio" > "$folder/initrd"
}

# Says why KVM cannot be used, nothing if it can. Many machines have a /dev/kvm that boots nothing, so one boot is tried;
# the answer holds until this machine's next boot.
why_not_kvm() {
  local answer status
  if [ ! -e /dev/kvm ]; then
    echo 'there is no /dev/kvm'
    return
  elif [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
    echo 'this user may not open /dev/kvm'
    return
  fi
  answer=$cache/kvm-$(id -u)-$(< /proc/sys/kernel/random/boot_id)
  if [ ! -e "$answer" ]; then
    qemu_command 0 kvm
    { (cd "$folder" && timeout --kill-after=1 20 "${qemu[@]}" > probe.log 2>&1 < /dev/null); } 2> /dev/null
    status=$?
    case $status in
      85) ;;
      124) echo 'a kernel did not boot with it within 20 s' ;;
      *) sed -n '1s/^qemu-system-x86_64: //p' "$folder/probe.log" | grep . || echo "QEMU ended with status $status" ;;
    esac > "$folder/answer"
    rm -f "$cache"/kvm-"$(id -u)"-*
    cp "$folder/answer" "$folder/answer.$$" && mv "$folder/answer.$$" "$answer"
    cat "$folder/answer"
    return
  fi
  cat "$answer"
}

# --- the machines ----------------------------------------------------------------------------------------------------

# qemu_command HOST ACCELERATOR: sets `qemu`; it is to be run in $folder. Host 0 only boots a kernel and ends.
qemu_command() {
  local host=$1 words rail
  words="console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 lsm=capability random.trust_cpu=on"
  words+=" rcupdate.rcu_expedited=1 cryptomgr.notests dummy.numdummies=0 RDMA_VM_HOST=$host"
  qemu=(qemu-system-x86_64 -M q35 -display none -nodefaults -no-user-config -no-reboot -smp "$cpus" -m "$memory")
  if [ "$2" = kvm ]; then
    qemu+=(-accel kvm -cpu host)
  else
    qemu+=(-accel "tcg,thread=multi" -cpu "max,la57=off")
    words+=' no_timer_check tsc=reliable'
  fi
  qemu+=(-kernel "$image/vmlinux" -initrd initrd -append "$words"
    -serial "file:console.$host" -device "isa-debug-exit,iobase=0xf4,iosize=4")
  [ "$host" != 0 ] || return 0
  qemu+=(-fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
    -device "virtio-9p-pci,fsdev=root,mount_tag=root"
    -fsdev "local,id=control,path=.,security_model=none" -device "virtio-9p-pci,fsdev=control,mount_tag=control")
  for ((i = 0; i < ${#writable[@]}; ++i)); do
    qemu+=(-fsdev "local,id=writable$i,path=${writable[i]//,/,,},security_model=none,multidevs=remap"
      -device "virtio-9p-pci,fsdev=writable$i,mount_tag=writable$i")
  done
  if [ "$host" = 1 ]; then
    qemu+=(-device virtio-serial-pci
      -chardev "file,id=out,path=out" -device "virtserialport,chardev=out,name=out"
      -chardev "file,id=err,path=err" -device "virtserialport,chardev=err,name=err")
  fi
  [ "$hosts" != 1 ] || return 0
  for rail in ff $(seq -f %02g 0 $((rails - 1))); do
    qemu+=(-netdev "dgram,id=n$rail,local.type=unix,local.path=$rail.$host,remote.type=unix,remote.path=$rail.$((3 - host))"
      -device "virtio-net-pci,netdev=n$rail,mac=52:54:00:77:$rail:0$host")
  done
}

write_control_folder() {
  cp "$parts"/{guest.sh,rails.sh,remote.py} "$folder"
  printf '%s\0' "$@" > "$folder/command"
  printf '%s\0' "$PWD" > "$folder/folder"
  cat /proc/$$/environ > "$folder/environment"
  : > "$folder/writable"
  [ ${#writable[@]} = 0 ] || printf '%s\0' "${writable[@]}" > "$folder/writable"
  printf '%s=%s\n' rails "$rails" hosts "$hosts" timeout "$timeout" accelerator "$accelerator" > "$folder/settings"
  for ((host = 1; host <= hosts; ++host)); do echo "vm$host slots=$cpus"; done > "$folder/hostfile"
  mkfifo "$folder/out" "$folder/err"
}

# Descriptors 8 and 9 keep the two streams open until the machines have ended, whoever opens and closes them meanwhile.
start() {
  exec 8<> "$folder/out" 9<> "$folder/err"
  cat < "$folder/out" 8>&- 9>&- &
  carriers=($!)
  cat < "$folder/err" >&2 8>&- 9>&- &
  carriers+=($!)
  for ((host = 1; host <= hosts; ++host)); do
    qemu_command "$host" "$accelerator"
    (cd "$folder" && exec setpriv --pdeathsig KILL -- "${qemu[@]}") > "$folder/qemu.$host" 2>&1 < /dev/null 8>&- 9>&- &
    machines+=($!)
  done
}

lost() { # WORDS HOST: the machine ended or never came up
  complain "$1"
  if [ -s "$folder/failure" ]; then cat "$folder/failure" >&2; fi
  tail -n 60 "$folder/qemu.$2" "$folder/console.$2" >&2
  exit 125
}

# Until the first machine has ended. It ends by itself, with all the bounds kept inside; the limits here are for one that
# hangs, and for output that nobody takes.
watch() {
  local ended status clock host limit=$((SECONDS + boot_limit)) started=''
  while :; do
    sleep 1 8>&- 9>&- &
    clock=$!
    ended=''
    wait -n -p ended "${machines[@]}" "${carriers[@]}" $clock 2> /dev/null # bash's own words about killed jobs
    status=$?
    kill $clock 2> /dev/null
    if [ -z "$started" ] && [ -e "$folder/started" ]; then
      started=1
      limit=$((SECONDS + timeout + 60))
    fi
    case $ended in
      "$clock") ;;
      "${machines[0]}") return ;;
      "${carriers[0]}" | "${carriers[1]}")
        [ $status != 0 ] || continue
        [ $status = 141 ] || complain "the command's output cannot be written"
        exit $status # as a command that writes to a closed pipe
        ;;
      *) [ -e "$folder/status" ] || lost "the second virtual machine ended" 2 ;;
    esac
    if [ $SECONDS -ge $limit ]; then
      [ -n "$started" ] || lost "the virtual machine did not come up in $boot_limit s" 1
      complain "the virtual machine does not end: killed $((timeout + 60)) s after the command began"
      exit 124
    fi
  done
}

# What is still under way in the two streams.
drain() {
  local limit=$((SECONDS + 30 < timeout ? timeout : SECONDS + 30)) carrier
  exec 8>&- 9>&-
  for carrier in "${carriers[@]}"; do
    while kill -0 "$carrier" 2> /dev/null; do
      [ $SECONDS -lt $limit ] || return 0
      sleep 0.02
    done
  done
}

# --- from start to end -----------------------------------------------------------------------------------------------

machines=() carriers=() builder=''
clean_up() {
  trap '' INT TERM HUP
  [ -z "$builder" ] || kill -- "-$builder" 2> /dev/null
  kill -9 "${machines[@]}" "${carriers[@]}" 2> /dev/null
  wait 2> /dev/null
  if [ -n "$console" ]; then cat "$folder"/console.[12] >&2; fi
  rm -rf "$folder"
}
folder=$(mktemp -d "${TMPDIR:-/tmp}/rdma-vm-XXXXXX") || exit 125
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

prepare
if [ "$accelerator" = auto ]; then
  reason=$(why_not_kvm)
  accelerator=kvm
  if [ -n "$reason" ]; then
    accelerator=tcg
    [ -n "$quiet" ] || complain "emulating the processor, KVM does not work here: $reason"
  fi
fi
write_control_folder "$@"
start
watch
drain
[ -s "$folder/status" ] || lost 'the virtual machine ended without a status' 1
[ ! -e "$folder/timed-out" ] || complain "out of time: $timeout s"
exit "$(< "$folder/status")"

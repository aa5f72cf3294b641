#!/bin/bash
# Process 1 of a guest, on this machine's own root file system: makes the RDMA devices, runs the command on the first
# guest, and leaves its exit status in the control folder that scripts/rdma-vm.sh reads.
exec < /dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
control=/run/rdma-vm
source $control/settings # rails, hosts, cpus, timeout, accelerator
source $control/rails.sh

leave() { # QEMU ends when this port is written to
  sync
  printf '\052' | dd of=/dev/port bs=1 seek=244 2> /dev/null
  sleep 5
  echo o > /proc/sysrq-trigger
  sleep 60
}
give_up() {
  echo "rdma-vm: $*" > /dev/console
  printf '%s\n' "$*" > $control/failure
  leave
}

find_streams() {
  local port name
  for port in /sys/class/virtio-ports/*; do
    read -r name < "$port/name"
    case $name in
      out) out=/dev/${port##*/} ;;
      err) err=/dev/${port##*/} ;;
    esac
  done
}

name_guest() {
  local host
  echo "vm$RDMA_VM_HOST" > /proc/sys/kernel/hostname
  ip link set lo up
  {
    echo '127.0.0.1 localhost'
    echo '::1 localhost'
    if [ "$hosts" = 1 ]; then
      echo '127.0.0.1 vm1'
    else
      for ((host = 1; host <= hosts; ++host)); do echo "10.76.0.$host vm$host"; done
    fi
  } > /etc/hosts
}

mount_writable() {
  local folder number=0
  while IFS= read -r -d '' folder; do
    mkdir -p "$folder" &&
      mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=512000 "writable$number" "$folder" ||
      give_up "cannot mount $folder"
    writable+=("$folder")
    number=$((number + 1))
  done < $control/writable
}

# What a program finds in its environment: defaults, what rdma-vm.sh was called with, what holds here and nowhere else.
make_environment() {
  local entry
  environment=(
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
    OMPI_MCA_pml=ob1 OMPI_MCA_osc=^ucx 'OMPI_MCA_btl=self,vader,tcp' # MPI's own traffic leaves the RDMA devices alone
    "PATH=$PATH"
  )
  if [ "$hosts" != 1 ]; then
    environment+=(
      "OMPI_MCA_plm_rsh_agent=$control/remote.py" "OMPI_MCA_orte_default_hostfile=$control/hostfile"
      OMPI_MCA_rmaps_base_mapping_policy=node
      OMPI_MCA_oob_tcp_if_include=10.76.0.0/24 OMPI_MCA_btl_tcp_if_include=10.76.0.0/24
    )
  fi
  while IFS= read -r -d '' entry; do
    case $entry in
      SLURM_* | PMI_* | PMIX_*) ;; # a launcher that cannot be reached from here
      PATH=*) environment+=("$entry:/usr/sbin:/sbin") ;;
      *) environment+=("$entry") ;;
    esac
  done < $control/environment
  local list=''
  for ((rail = 0; rail < rails; ++rail)); do list+=" $rail"; done
  own_environment=(
    "RDMA_VM_HOST=$RDMA_VM_HOST" "RDMA_VM_HOSTS=$hosts" "RDMA_VM_ACCELERATOR=$accelerator"
    "RDMA_VM_DEVICES=${list// / rxe}" "RDMA_VM_INTERFACES=${list// / rail}" "RDMA_VM_ADDRESSES=${addresses[*]}"
    "RDMA_VM_SHELL=$control/remote.py"
  )
  own_environment=("${own_environment[@]//= /=}")
}

# Everything but kernel threads, this process and the two that carry the output. Until none is found: they may fork.
kill_the_rest() {
  local process found=1
  while [ -n "$found" ]; do
    found=''
    for process in /proc/[0-9]*; do
      process=${process#/proc/}
      case $process in 1 | "$carrier_out" | "$carrier_err") continue ;; esac
      [ -e "/proc/$process/exe" ] && kill -9 "$process" 2> /dev/null && found=1
    done
  done
}

run_command() {
  local command folder status
  mapfile -d '' command < $control/command
  IFS= read -r -d '' folder < $control/folder
  mkfifo /dev/shm/.out /dev/shm/.err
  cat /dev/shm/.out > "$out" &
  carrier_out=$!
  cat /dev/shm/.err > "$err" &
  carrier_err=$!
  (
    exec > /dev/shm/.out 2> /dev/shm/.err
    rm /dev/shm/.out /dev/shm/.err
    if ! cd "$folder" 2> /dev/null; then
      echo "rdma-vm: the folder $folder does not exist in the guest (see --help)" >&2
      exit 126
    fi
    exec setsid timeout --kill-after=5 "$timeout" env -i -- \
      "${environment[@]}" "${own_environment[@]}" "${command[@]}"
  )
  status=$?
  # timeout says 124, or 137 when it had to kill; a command may end with these on its own.
  if [ $SECONDS -ge "$timeout" ] && { [ $status = 124 ] || [ $status = 137 ]; }; then
    status=124
    : > $control/timed-out
  fi
  kill_the_rest
  wait $carrier_out $carrier_err
  return $status
}

for module in crc32_generic crc32_pclmul; do modprobe $module 2> /dev/null; done
ulimit -l unlimited
ulimit -n 65536
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
find_streams
name_guest
modprobe -a rdma_rxe rdma_ucm ib_umad || give_up 'the RDMA modules cannot be loaded'
make_rails > /dev/shm/.rails 2>&1 || give_up "the RDMA devices cannot be made: $(< /dev/shm/.rails)"
writable=()
mount_writable
make_environment

if [ "$RDMA_VM_HOST" != 1 ]; then
  $control/remote.py --serve "10.76.0.$RDMA_VM_HOST" $control/ready."$RDMA_VM_HOST" \
    "${own_environment[@]}" > /dev/console 2>&1
  give_up "the server for remote commands ended with status $?"
fi
for ((host = 2; host <= hosts; ++host)); do
  for ((try = 0; ; ++try)); do
    [ ! -e "$control/ready.$host" ] || break
    [ $try -lt 2400 ] || give_up "guest $host did not come up"
    sleep 0.1
  done
done
: > $control/started
SECONDS=0
run_command
status=$?
for ((i = ${#writable[@]} - 1; i >= 0; --i)); do umount "${writable[i]}"; done
echo $status > $control/status.new
mv $control/status.new $control/status
leave

#!/usr/bin/env bash
# Runs a command on the login node of a real Slurm of several nodes, all on this machine.
#
#   scripts/slurm-test.sh [-n NODES] [-c CPUS-PER-NODE] [-t SECONDS] -- COMMAND [ARGUMENT...]
#   scripts/slurm-test.sh -- srun -N2 --ntasks-per-node=2 build/release/apps/dtr_info
#
# munge, slurmctld and one slurmd a node run for as long as the command does (at most SECONDS, default 300); its exit
# status is the script's, 124 if the time ran out, 77 if this machine cannot do it (not root, Slurm not installed).
# A node is a set of namespaces of its own: network (10.77.0.N on a bridge), host name, processes, IPC, /dev/shm. The
# file system is shared, as on a cluster, but /run is the cluster's own and in memory, and TMPDIR lies there; /tmp is
# this machine's. When the command ends, process 1 of the cluster ends, and the kernel takes away all the rest.
#
# Inside, for tests of failures:  $0 __power_off n2   ends everything on a node;  $0 __power_on n2   starts it again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PATH=$PATH:/usr/sbin:/sbin
self=$(readlink -f "${BASH_SOURCE[0]}")
home=/run/slurm
network=10.77.0

cannot() {
  echo "slurm-test: skipped: $*" >&2
  exit 77
}

# --- on this machine ---------------------------------------------------------------------------------------------

check_machine() {
  [ "$(id -u)" = 0 ] || cannot 'needs root, to make namespaces'
  local program
  for program in munged slurmctld slurmd srun ip unshare nsenter; do
    command -v $program > /dev/null || cannot "$program is not installed (scripts/setup.sh --slurm)"
  done
  # Slurm's PMIx plugin opens the library by this name, which only the -dev package has.
  compgen -G '/usr/lib/*/pmix2/lib/libpmix.so' > /dev/null || cannot 'libpmix-dev is not installed (scripts/setup.sh --slurm)'
  mountpoint -q /sys/fs/cgroup || cannot 'slurmd wants a file system on /sys/fs/cgroup, and none is mounted'
  unshare --net --pid --mount --fork true 2> /dev/null || cannot 'this container may not make namespaces'
}

# --- in the cluster: process 1 -----------------------------------------------------------------------------------

write_configuration() {
  local node
  mkdir -p $home/{state,log,munge} /run/tmp
  chmod 1777 /run/tmp
  (umask 077 && head -c 128 /dev/urandom > $home/munge/key)
  {
    echo '127.0.0.1 localhost'
    echo "$network.254 login"
  } > $home/hosts
  for ((node = 1; node <= nodes; ++node)); do
    mkdir -p "$home/n$node/spool" "$home/n$node/tmp"
    echo "$network.$node n$node" >> $home/hosts
  done
  # The tree fence of Slurm 22.05's PMIx plugin lets ranks out of MPI_Init's barrier too early: one multi-node start in
  # twenty crashes. The ring does not.
  printf '%s\n' PMIxCollFence=ring PMIxFenceBarrier=true > $home/mpi.conf
  cat > $home/slurm.conf << CONFIGURATION
ClusterName=onebox
SlurmctldHost=login($network.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket
CredType=cred/munge
StateSaveLocation=$home/state
SlurmctldPidFile=$home/slurmctld.pid
SlurmctldLogFile=$home/log/slurmctld
SlurmdLogFile=$home/log/%n
SlurmdPidFile=$home/%n/slurmd.pid
SlurmdSpoolDir=$home/%n/spool
TmpFS=$home/%n/tmp
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=$cpus RealMemory=1000 State=UNKNOWN
$(for ((node = 1; node <= nodes; ++node)); do echo "NodeName=n$node NodeAddr=$network.$node"; done)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
CONFIGURATION
}

start_node() {
  local name=$1
  nsenter --net="/run/netns/$name" unshare --fork --kill-child --pid --mount-proc --mount --uts --ipc \
    "$self" __node "$name" > "$home/log/$name.out" 2>&1 < /dev/null &
}

connect_node() {
  local name=$1
  ip netns add "$name"
  ip link add "v-$name" type veth peer name eth0 netns "$name"
  ip link set "v-$name" master br0 up
  ip -n "$name" address add "$network.${name#n}/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
}

idle_nodes() { sinfo -h -N -p main -t idle -o %N 2> /dev/null | wc -l; }

cluster_environment() {
  mpi_environment
  export SLURM_CONF=$home/slurm.conf TMPDIR=/run/tmp
  export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_osc=^ucx # no probing for hardware that is not there
  export OMPI_MCA_btl_vader_single_copy_mechanism=none
  export OMPI_MCA_btl_tcp_if_include=$network.0/24 OMPI_MCA_oob_tcp_if_include=$network.0/24
}

run_cluster() {
  nodes=$1 cpus=$2 seconds=$3
  shift 3
  mount -t tmpfs -o mode=755 run /run
  mount -t tmpfs shm /dev/shm
  write_configuration
  mount --bind $home/hosts /etc/hosts
  hostname login
  ip link set lo up
  ip link add br0 type bridge
  ip address add $network.254/24 dev br0
  ip link set br0 up
  cluster_environment

  munged --socket=$home/munge/socket --key-file=$home/munge/key --pid-file=$home/munge/pid \
    --seed-file=$home/munge/seed --log-file=$home/log/munged --num-threads=2
  slurmctld -D -i > $home/log/slurmctld.out 2>&1 < /dev/null &
  local node
  for ((node = 1; node <= nodes; ++node)); do
    connect_node "n$node"
    start_node "n$node"
  done
  local until=$((SECONDS + 60))
  while [ "$(idle_nodes)" != "$nodes" ]; do
    if [ $SECONDS -ge $until ]; then
      tail -n 30 $home/log/* >&2
      die 'the nodes did not come up within 60 s'
    fi
    sleep 0.1
  done

  local status=0
  timeout --kill-after=5 "$seconds" "$@" || status=$?
  if [ $status != 0 ] && [ -n "${DTR_TEST_SLURM_LOGS:-}" ]; then tail -n 60 $home/log/* >&2; fi
  exit $status
}

# --- on a node ---------------------------------------------------------------------------------------------------

run_node() {
  local name=$1
  hostname "$name"
  mount -t tmpfs shm /dev/shm
  echo "$(readlink /proc/self/ns/pid)" > "$home/$name/namespace"
  slurmd -D -N "$name" &
  wait
}

power_off() { # SIGKILL to the node's process 1 takes all of its processes along
  local wanted process
  wanted=$(cat "$home/$1/namespace")
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/ns/pid" 2> /dev/null)" = "$wanted" ]; then kill -9 "${process#/proc/}" 2> /dev/null || true; fi
  done
}

case ${1:-} in
  __cluster) shift && run_cluster "$@" ;;
  __node) run_node "$2" ;;
  __power_off) power_off "$2" ;;
  __power_on) start_node "$2" ;;
  *)
    nodes=2 cpus=4 seconds=300
    while getopts 'n:c:t:h' option; do
      case $option in
        n) nodes=$OPTARG ;;
        c) cpus=$OPTARG ;;
        t) seconds=$OPTARG ;;
        *)
          sed -n '2,15s/^# \{0,1\}//p' "$self"
          exit 2
          ;;
      esac
    done
    shift $((OPTIND - 1))
    [ $# -gt 0 ] || die 'no command (see -h)'
    check_machine
    exec unshare --fork --kill-child --pid --mount-proc --mount --net --uts --ipc "$self" __cluster "$nodes" "$cpus" "$seconds" "$@"
    ;;
esac

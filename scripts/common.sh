# What the scripts share. Sourced, never run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Two GiB for each job: a build that swaps is slower than one with fewer jobs.
parallel_jobs() {
  awk -v cores="$(nproc)" '/^MemAvailable:/ { n = int($2 / 2097152); if (n < 1) n = 1; print n < cores ? n : cores }' \
    /proc/meminfo
}

# Open MPI on a machine that may have fewer cores than ranks. Root is refused by mpirun unless told twice.
mpi_environment() {
  export OMPI_MCA_rmaps_base_oversubscribe=1     # more ranks than cores is normal in tests
  export OMPI_MCA_hwloc_base_binding_policy=none # ... and they must not all sit on core 0
  export OMPI_MCA_mpi_yield_when_idle=1          # ... and a waiting rank gives its core away
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}

# configure_and_build PRESET [TARGET...]: quiet unless something goes wrong.
configure_and_build() {
  local preset=$1 log="$root/build/$1.log" targets=()
  shift
  [ $# = 0 ] || targets=(--target "$@")
  mkdir -p "$root/build"
  if ! (cd "$root" && cmake --preset "$preset" && cmake --build --preset "$preset" -j "$(parallel_jobs)" "${targets[@]}") \
    > "$log" 2>&1; then
    grep -nE -m 40 'error|FAILED|Error' "$log" >&2
    echo "the whole log: $log" >&2
    return 1
  fi
}

#!/usr/bin/env bash
# Installs what the build, the tests and the demo need on Debian 12. Run it as often as you like: when everything is
# there it says so and touches nothing.
#
#   scripts/setup.sh             compilers, libraries, Open MPI, the Fashion-MNIST images
#   scripts/setup.sh --slurm     also Slurm and munge, for scripts/slurm-test.sh
#   scripts/setup.sh --rdma      also QEMU and the RDMA tools, for scripts/rdma-vm.sh
#   scripts/setup.sh --bench     also the peers that scripts/bench.sh compares with
#   scripts/setup.sh --all       also clang, clang-tidy, clang-format
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  build-essential cmake ninja-build pkg-config git python3 procps
  openmpi-bin libopenmpi-dev libhwloc-dev libibverbs-dev
  libtomlplusplus-dev libcli11-dev libspdlog-dev libexpected-dev nlohmann-json3-dev
  libdeflate-dev libzstd-dev libxxhash-dev libsodium-dev
  libhdf5-dev hdf5-tools libeigen3-dev
  libgtest-dev libgmock-dev libbenchmark-dev valgrind
  dataset-fashion-mnist
)
slurm_packages=(slurmctld slurmd slurm-client munge iproute2 libpmix-dev)
rdma_packages=(qemu-system-x86 busybox-static cpio kmod xz-utils iproute2 ibverbs-providers ibverbs-utils perftest)
bench_packages=(ucx-utils libucx-dev libfabric-bin)
check_packages=(clang clang-tidy clang-format)

for option in "$@"; do
  case $option in
    --slurm) packages+=("${slurm_packages[@]}") ;;
    --rdma) packages+=("${rdma_packages[@]}") ;;
    --bench) packages+=("${bench_packages[@]}") ;;
    --all) packages+=("${slurm_packages[@]}" "${rdma_packages[@]}" "${bench_packages[@]}" "${check_packages[@]}") ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) die "unknown option $option (see --help)" ;;
  esac
done

command -v dpkg-query > /dev/null || die "this is not Debian: install by hand what stands at the top of scripts/setup.sh"

installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2> /dev/null | sed -n 's/^installed //p' || true)
missing=()
for package in "${packages[@]}"; do
  grep -qxF "$package" <<< "$installed" || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  say "set-up: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo > /dev/null || die "not root and no sudo; as root: apt-get install ${missing[*]}"
  as_root=(sudo)
  if ! sudo -n true 2> /dev/null; then # it wants a password, or does not let this user
    { : < /dev/tty; } 2> /dev/null ||
      die "sudo wants a password and there is no terminal to ask on; as root: apt-get install ${missing[*]}"
    say 'set-up: installing packages needs sudo'
    sudo true || die "sudo refused; as root: apt-get install ${missing[*]}"
  fi
fi
say "set-up: installing ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
"${apt[@]}" update || say "apt-get update failed; going on with the package lists that are there"
"${apt[@]}" install -y --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" > /dev/null
say "set-up: done"

#!/usr/bin/env bash
# Compares libdtr with its peers: both in turn, on the same two cores, at least five rounds. Prints a table with a
# ratio column (above 1 = libdtr is ahead) and writes build/bench/NAME.json. See docs/benchmarks.md.
#
#   scripts/bench.sh NAME [--install] [--rounds N] [--quick] [--only PART,PART] [--urgent] [--sweep] [--markdown FILE]
#
#   NAME       shm, tcp, verbs, alltoall, gradients, train, startup, scale: one of benchmarks/NAME.py; all: every one
#   --install  install the peers first; otherwise one that is missing is left out, and said so
#   --quick    short runs, for a first look
#   --sweep    shm and tcp: a range of sizes, and a picture build/bench/NAME.svg
#   --urgent   both sides at the highest priority, for a machine that others use (needs root)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; }

names=()
options=()
install=false
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --install) install=true ;;
    --rounds | --only | --markdown)
      [ $# -gt 1 ] || die "$1 wants a value"
      options+=("$1" "$2")
      shift
      ;;
    -*) options+=("$1") ;;
    *) names+=("$1") ;;
  esac
  shift
done
[ ${#names[@]} = 1 ] || {
  usage >&2
  exit 2
}
available=()
for file in "$root"/benchmarks/*.py; do
  if grep -q 'harness\.main(' "$file"; then available+=("$(basename "$file" .py)"); fi
done
if [ "${names[0]}" = all ]; then
  names=("${available[@]}")
fi
for name in "${names[@]}"; do
  [[ " ${available[*]} " = *" $name "* ]] || die "no comparison $name; there are: ${available[*]} all"
done

if $install; then "$root/scripts/setup.sh" --bench; fi
configure_and_build release dtr_perf benchmarks
for name in "${names[@]}"; do
  python3 "$root/benchmarks/$name.py" "${options[@]}"
done

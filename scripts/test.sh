#!/usr/bin/env bash
# Sets up, builds and tests everything. The last line counts the tests of all builds in ctest's own words.
#
#   scripts/test.sh          release build with all tests; asan+ubsan and tsan builds with the unit and conformance tests
#   scripts/test.sh --quick  the release build only
#   scripts/test.sh --all    also the long tests (label soak), valgrind, a clang build, clang-tidy of the whole tree
#
# DTR_TEST_TIME_SCALE stretches every time bound of the tests (for slow or busy machines).
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mode=default
case ${1:-} in
  '') ;;
  --quick | --all) mode=${1#--} ;;
  -h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) die "unknown option $1 (see --help)" ;;
esac

setup_options=()
[ "$(id -u)" = 0 ] && setup_options+=(--slurm) # the Slurm test needs root; others skip it by name
[ "$mode" = all ] && setup_options+=(--all)
"$root/scripts/setup.sh" "${setup_options[@]}" || die "set-up failed"
"$root/scripts/setup.sh" --rdma > /dev/null || say "no QEMU or RDMA tools: the tests of label verbs will be skipped"

cd "$root" || exit 1
mpi_environment
export CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$(nproc)}
scale=${DTR_TEST_TIME_SCALE:-1}
results=build/test-results
rm -rf "$results"
mkdir -p "$results"
passed=0 failed=0 skipped=0 table=() losers=()

# count NAME SECONDS STATUS: adds the totals that ctest wrote for one build, and checks them against its exit status.
count() {
  local file="$results/$1.xml" total bad idle
  if [ ! -s "$file" ]; then
    failed=$((failed + 1))
    table+=("$(printf '%-10s FAILED: did not build or ran no test' "$1")")
    return
  fi
  total=$(junit_total "$file" tests) bad=$(junit_total "$file" failures)
  idle=$(($(junit_total "$file" skipped) + $(junit_total "$file" disabled)))
  if [ "$3" != 0 ] && [ "$bad" = 0 ]; then # a test whose program is missing counts as skipped in the file
    bad=1 idle=$((idle > 0 ? idle - 1 : 0))
  fi
  passed=$((passed + total - bad - idle)) failed=$((failed + bad)) skipped=$((skipped + idle))
  while read -r test; do losers+=("$1: $test"); done < <(junit_failures "$file")
  table+=("$(printf '%-10s %5d passed %4d failed %4d skipped %5d s' "$1" $((total - bad - idle)) "$bad" "$idle" "$2")")
}
junit_failures() { grep -oP '<testcase name="\K[^"]*(?=".* status="fail")' "$1"; }
junit_total() { grep -oE "[[:space:]]$2=\"[0-9]+\"" "$1" | head -n 1 | tr -dc 0-9; }

# suite NAME PRESET TARGET CTEST-ARGUMENT...
suite() {
  local name=$1 preset=$2 target=$3 started=$SECONDS status=1
  shift 3
  say "$name: building (log: build/$preset.log)"
  if configure_and_build "$preset" "$target"; then
    say "$name: testing (built in $((SECONDS - started)) s)"
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=error --output-junit "$root/$results/$name.xml" "$@"
    status=$?
  fi
  count "$name" $((SECONDS - started)) $status
}

# check NAME COMMAND...: one check outside ctest, counted as one test.
check() {
  local name=$1 started=$SECONDS words=passed
  shift
  say "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)) words=FAILED
  fi
  table+=("$(printf '%-10s %s %d s' "$name" "$words" $((SECONDS - started)))")
}

everyday=(-LE 'soak|valgrind')
[ "$mode" = all ] && everyday=()

suite release release all "${everyday[@]}"

if [ "$mode" != quick ]; then
  export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1}
  export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
  export DTR_TEST_TIME_SCALE
  DTR_TEST_TIME_SCALE=$(awk "BEGIN { print 4 * $scale }")
  suite asan asan unit_tests -L unit
  # g++ 12's tsan cannot map its shadow under the address randomisation of newer kernels.
  if setarch -R true 2> /dev/null; then
    ctest() { setarch -R "$(type -P ctest)" "$@"; }
    cmake() { setarch -R "$(type -P cmake)" "$@"; }
  fi
  DTR_TEST_TIME_SCALE=$(awk "BEGIN { print 8 * $scale }")
  suite tsan tsan unit_tests -L unit
  unset -f ctest cmake
  DTR_TEST_TIME_SCALE=$scale
fi

if [ "$mode" = all ]; then
  suite clang clang all -L unit
  check clang-tidy run-clang-tidy -quiet -p build/clang "$root/(lib|apps|tests|benchmarks)/"
fi

echo
printf '%s\n' "${table[@]}"
[ ${#losers[@]} = 0 ] || printf 'failed: %s\n' "${losers[@]}"
[ "$skipped" = 0 ] || echo "$skipped skipped (each says why above)"
total=$((passed + failed))
[ "$total" -gt 0 ] || die "no test ran"
echo "$((100 * passed / total))% tests passed, $failed tests failed out of $total"
[ "$failed" = 0 ]

#!/usr/bin/env bash
# Sets up, builds and tests everything. The last line counts the tests of all builds in ctest's own words.
#
#   scripts/test.sh          release build with all tests; asan+ubsan and tsan builds with the unit and conformance tests
#   scripts/test.sh --quick  the release build only
#   scripts/test.sh --all    also the long tests (label soak), valgrind, a clang build, fuzzers, clang-tidy of the whole tree
#
# DTR_TEST_TIME_SCALE stretches every time bound of the tests (for slow or busy machines).
# Up to three failed tests of a build are run once more, alone. Who passes then is named as unsteady, with the output of
# its failure above; DTR_TEST_STRICT=1 counts it as failed.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mode=default
case ${1:-} in
  '') ;;
  --quick | --all) mode=${1#--} ;;
  -h | --help)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
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
strict=${DTR_TEST_STRICT:-0}
most_repeated=3
passed=0 failed=0 skipped=0 table=() losers=() unsteady=() ends=''

# count NAME SECONDS STATUS: adds the totals that ctest wrote for one build, and checks them against the exit status of
# its tests or, where they were repeated, of that.
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
  if [ "$3" = 0 ] && [ "$bad" != 0 ]; then # they passed when repeated
    mapfile -t -O ${#unsteady[@]} unsteady < <(junit_failures "$file" | sed "s/^/$1: /")
    bad=0
  fi
  passed=$((passed + total - bad - idle)) failed=$((failed + bad)) skipped=$((skipped + idle))
  [ "$bad" = 0 ] || mapfile -t -O ${#losers[@]} losers < <(junit_failures "$file" | sed "s/^/$1: /")
  ends+=$(junit_ends "$1" "$file")
  table+=("$(printf '%-10s %5d passed %4d failed %4d skipped %5d s' "$1" $((total - bad - idle)) "$bad" "$idle" "$2")")
}
junit_failures() { grep -oP '<testcase name="\K[^"]*(?=".* status="fail")' "$1"; }
# junit_ends NAME FILE: the last lines of what the first failed tests said. Thousands of lines lie between them and the end.
junit_ends() {
  python3 - "$1" "$2" << 'END'
import sys
from xml.etree import ElementTree
failed = [case for case in ElementTree.parse(sys.argv[2]).iter("testcase") if case.get("status") == "fail"]
for case in failed[:5]:
    print(f"\n\n== {sys.argv[1]}: {case.get('name')} failed after {case.get('time')} s, with these last words:")
    print("\n".join((case.findtext("system-out") or "").rstrip().splitlines()[-12:]))
END
}
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
    if [ $status != 0 ] && [ "$strict" = 0 ] && repeat "$name" "$preset" "$@"; then status=0; fi
  fi
  count "$name" $((SECONDS - started)) $status
}

# repeat NAME PRESET CTEST-ARGUMENT...: runs the few tests that failed once more; true if all of them pass.
repeat() {
  local again="$results/$1-again.xml" few
  few=$(junit_total "$results/$1.xml" failures)
  [ "${few:-0}" -ge 1 ] && [ "$few" -le "$most_repeated" ] || return 1
  say "$1: $few failed, once more alone"
  CTEST_PARALLEL_LEVEL=1 ctest --test-dir "build/$2" --rerun-failed --output-on-failure --no-tests=error \
    --output-junit "$root/$again" "${@:3}" || return 1
  [ "$(junit_total "$again" tests)" -ge "$few" ] && [ "$(junit_total "$again" skipped)" = 0 ]
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
  suite fuzz fuzz fuzzers -L fuzz
  check clang-tidy run-clang-tidy -quiet -p build/clang "$root/(lib|apps|tests|benchmarks)/"
fi

printf '%s\n\n' "$ends"
printf '%s\n' "${table[@]}"
[ ${#unsteady[@]} = 0 ] || printf 'unsteady: %s (failed, then passed alone: see above)\n' "${unsteady[@]}"
[ ${#losers[@]} = 0 ] || printf 'failed: %s\n' "${losers[@]}"
[ "$skipped" = 0 ] || echo "$skipped skipped (each says why above)"
total=$((passed + failed))
[ "$total" -gt 0 ] || die "no test ran"
echo "$((100 * passed / total))% tests passed, $failed tests failed out of $total"
[ "$failed" = 0 ]

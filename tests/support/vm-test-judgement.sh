#!/usr/bin/env bash
# vm-test.sh itself: what it must accept and what it must refuse. Without a virtual machine: a stand-in runs the program.
set -uo pipefail
judge=$(dirname "${BASH_SOURCE[0]}")/vm-test.sh
folder=$(mktemp -d "${TMPDIR:-/tmp}/dtr-vm-judgement-XXXXXX")
trap 'rm -rf "$folder"' EXIT
bad=0

cat > "$folder/vm" << 'STAND_IN'
#!/usr/bin/env bash
while [ "$1" != -- ]; do shift; done
shift
"$@"
STAND_IN
# The program writes $REPORT where its last argument says, and returns $CODE.
cat > "$folder/program" << 'PROGRAM'
#!/usr/bin/env bash
last=${@: -1}
[ -z "$REPORT" ] || printf '%s\n' "$REPORT" > "${last#--gtest_output=xml:}"
exit $CODE
PROGRAM
cat > "$folder/no-vm" << 'NO_VM'
#!/usr/bin/env bash
exit 77
NO_VM
chmod +x "$folder"/*

# expect STATUS WORDS-IN-THE-OUTPUT
expect() {
  local output status
  output=$("$judge" -t 5 -- "$folder/program" 2>&1)
  status=$?
  if [ $status != "$1" ] || ! grep -qF -- "$2" <<< "$output"; then
    printf 'expected %s with "%s", got %s:\n%s\n' "$1" "$2" "$status" "$output"
    bad=1
  fi
}
report() { # FAILURES CASE...
  printf '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites tests="2" failures="%s" disabled="0" errors="0" name="AllTests">\n' "$1"
  shift
  printf '    <testcase name="A" status="run" result="%s" />\n' "$@"
  printf '</testsuites>\n'
}

export DTR_TEST_VM=$folder/vm REPORT='' CODE=0
expect 1 'left no report'
REPORT=$(report 0 completed completed) expect 0 '2 of 2 tests ran'
REPORT=$(report 0 completed skipped) expect 0 '1 of 2 tests ran'
REPORT=$(report 0 skipped skipped) expect 1 'no test ran'
REPORT=$(report 1 completed completed) CODE=1 expect 1 '1 failures'
REPORT=$(report 1 completed completed) expect 1 '1 failures'
REPORT=$(report 0 completed completed) CODE=139 expect 1 'returned 139'
REPORT=$(report 0 completed completed | head -n 3) expect 1 'cut off'
DTR_TEST_VM=$folder/no-vm expect 77 ''
exit $bad

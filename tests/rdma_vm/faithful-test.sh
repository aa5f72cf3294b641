#!/usr/bin/env bash
# The command finds its arguments, its folder and its environment exactly as given; its two outputs come back apart,
# every byte of them, and so does its exit status.
source "$(dirname "$0")/common.sh"

mkdir "$folder/a folder, \"named\" so"
cd "$folder/a folder, \"named\" so" || exit 1
export RDMA_VM_TEST_VALUE=$'two\nlines, \'quotes\" and $HOME ' RDMA_VM_TEST_EMPTY=''
arguments=('' ' ' 'two words' "it's" '"' '$HOME' '`id`' '*' '\' '\\n' $'a\nb' $'tab\t' '-n' '--' 'ö' $'\xff\x01' ';' 'a=b' '!')
head -c 300000 /dev/urandom > ../bytes

vm 37 -- bash "$here/report.sh" "${arguments[@]}"
{
  pwd
  printf '%s\0' "${#arguments[@]}" "${arguments[@]}" "$RDMA_VM_TEST_VALUE" "${RDMA_VM_TEST_EMPTY-unset}"
  cat ../bytes
} > ../expected-out
{
  echo error output
  tac ../bytes
} > ../expected-err
expect 'output differs' cmp "$folder/out" "$folder/expected-out"
expect 'error output differs' cmp "$folder/err" "$folder/expected-err"
exit $bad

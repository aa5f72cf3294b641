#!/usr/bin/env bash
# Part of faithful-test.sh, run in the guest: says what it was given.
pwd
printf '%s\0' $# "$@" "$RDMA_VM_TEST_VALUE" "${RDMA_VM_TEST_EMPTY-unset}"
cat ../bytes
cat # standard input is empty
{
  echo error output
  tac ../bytes
} >&2
sleep 1000 & # must not keep the run from ending
exit 37

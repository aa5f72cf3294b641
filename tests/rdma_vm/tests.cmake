# scripts/rdma-vm.sh itself. Two cores each: a guest has two processors, which QEMU emulates with a thread each.
foreach(test faithful writable end device wire hosts)
  add_test(NAME rdma_vm/${test} COMMAND ${CMAKE_CURRENT_LIST_DIR}/${test}-test.sh)
  set_tests_properties(rdma_vm/${test} PROPERTIES LABELS verbs PROCESSORS 2 TIMEOUT 1200 SKIP_RETURN_CODE 77)
endforeach()

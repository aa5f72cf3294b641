# scripts/rdma-vm.sh itself. Two cores each: a guest has two processors, which QEMU emulates with a thread each.
foreach(test faithful writable end device wire hosts)
  add_test(NAME rdma_vm/${test} COMMAND ${CMAKE_CURRENT_LIST_DIR}/${test}-test.sh)
  set_tests_properties(rdma_vm/${test} PROPERTIES LABELS verbs PROCESSORS 2 TIMEOUT 1200 SKIP_RETURN_CODE 77)
endforeach()

add_test(NAME support/vm-test-judges COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/support/vm-test-judgement.sh)
set_tests_properties(support/vm-test-judges PROPERTIES LABELS verbs TIMEOUT 300)

# The library in the machine: its processor is not the one that the build was made on.
dtr_vm_test(rdma_vm/gtest-program test_fabric ARGS --gtest_filter=*PeerConformance*tcp*)

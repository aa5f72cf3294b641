dtr_mpi_test(runtime/mpi-carries-no-data 4 runtime_mpi_calls_mpi)
dtr_mpi_test(runtime/brief-life 4 runtime_brief_life_mpi)

# The counters above see everything only if the program leaves no MPI function to the library.
add_test(NAME runtime/every-mpi-function-is-counted
         COMMAND sh -c "! nm --undefined-only $1 | grep -E ' U MPI_[A-Z]'" sh $<TARGET_FILE:runtime_mpi_calls_mpi>)
set_tests_properties(runtime/every-mpi-function-is-counted PROPERTIES LABELS mpi)

dtr_mpi_test(runtime/stopped-rank 2 runtime_stopped_rank_mpi TIMEOUT 240)
dtr_mpi_test(runtime/heartbeat 4 runtime_heartbeat_mpi TIMEOUT 300)
if(NOT DTR_SANITIZE)
  # The same over RDMA devices. Twice the time: the processor there is emulated.
  add_test(NAME runtime/heartbeat-over-verbs
           COMMAND ${PROJECT_SOURCE_DIR}/scripts/rdma-vm.sh --timeout 900 --
                   env DTR_TEST_TRANSPORT=verbs DTR_TEST_TIME_SCALE=2
                   ${PROJECT_SOURCE_DIR}/tests/support/mpirun-test.sh -n 4 -t 300 -- $<TARGET_FILE:runtime_heartbeat_mpi>)
  set_tests_properties(runtime/heartbeat-over-verbs PROPERTIES LABELS verbs PROCESSORS 2 TIMEOUT 1200 SKIP_RETURN_CODE 77)
endif()

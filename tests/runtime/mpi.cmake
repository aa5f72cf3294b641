dtr_mpi_test(runtime/mpi-carries-no-data 4 runtime_mpi_calls_mpi)
dtr_mpi_test(runtime/brief-life 4 runtime_brief_life_mpi)

# The counters above see everything only if the program leaves no MPI function to the library.
add_test(NAME runtime/every-mpi-function-is-counted
         COMMAND sh -c "! nm --undefined-only $1 | grep -E ' U MPI_[A-Z]'" sh $<TARGET_FILE:runtime_mpi_calls_mpi>)
set_tests_properties(runtime/every-mpi-function-is-counted PROPERTIES LABELS mpi)

dtr_mpi_test(runtime/stopped-rank 2 runtime_stopped_rank_mpi TIMEOUT 240)
dtr_mpi_test(runtime/heartbeat 4 runtime_heartbeat_mpi TIMEOUT 300)

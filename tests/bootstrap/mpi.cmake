dtr_mpi_test(bootstrap/world-4 4 bootstrap_world_mpi)
dtr_mpi_test(bootstrap/world-3 3 bootstrap_world_mpi)
dtr_mpi_test(bootstrap/callers-communicator 3 bootstrap_callers_comm_mpi)
dtr_mpi_test(bootstrap/dead-rank 3 bootstrap_dead_rank_mpi DEAD 2)

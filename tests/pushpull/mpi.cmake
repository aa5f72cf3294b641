target_sources(pushpull_dead_rank_mpi PRIVATE ${CMAKE_CURRENT_LIST_DIR}/job.cpp)
foreach(transport shm tcp)
  dtr_mpi_test(pushpull/dead-worker-${transport} 4 pushpull_dead_rank_mpi DEAD 1)
  dtr_mpi_test(pushpull/dead-server-${transport} 4 pushpull_dead_rank_mpi DEAD 3)
  set_tests_properties(pushpull/dead-worker-${transport}
                       PROPERTIES ENVIRONMENT "DTR_TEST_VICTIM=1;DTR_TRANSPORT=${transport}")
  set_tests_properties(pushpull/dead-server-${transport}
                       PROPERTIES ENVIRONMENT "DTR_TEST_VICTIM=3;DTR_TRANSPORT=${transport}")
endforeach()

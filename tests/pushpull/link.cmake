# The job in one process that all tests of the room run.
target_sources(test_pushpull PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/pushpull/job.cpp)
target_link_libraries(test_pushpull PRIVATE dtr_software_nic)

target_sources(test_software_nic PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/software_nic/ends.cpp)
target_link_libraries(test_software_nic PRIVATE dtr_software_nic)

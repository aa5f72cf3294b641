# Ranks in one process over software NICs.
target_sources(test_fabric_verbs PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/fabric/world.cpp)
target_link_libraries(test_fabric_verbs PRIVATE dtr_software_nic)

target_link_libraries(test_fabric PRIVATE dtr_software_nic)
# The ranks-in-one-process harness of the conformance suite.
target_sources(test_fabric PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/fabric/world.cpp
                                   ${CMAKE_CURRENT_SOURCE_DIR}/fabric/transport_cases.cpp)

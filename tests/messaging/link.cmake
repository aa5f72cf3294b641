set(strange_peers ${CMAKE_CURRENT_SOURCE_DIR}/messaging/strange_peers.cpp
                  ${CMAKE_CURRENT_SOURCE_DIR}/messaging/ether.cpp)
# Ranks as threads, as the tests of push_pull have them.
target_sources(test_messaging PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/pushpull/job.cpp ${strange_peers})
target_compile_definitions(test_messaging PRIVATE DTR_READ_TABLE="${CMAKE_CURRENT_SOURCE_DIR}/messaging/read.toml")
target_link_libraries(test_messaging PRIVATE dtr_software_nic)
dtr_fuzzer(fuzz_messages ${CMAKE_CURRENT_SOURCE_DIR}/messaging/fuzz_messages.cpp ${strange_peers})

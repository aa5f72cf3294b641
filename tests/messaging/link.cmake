# Ranks as threads, as the tests of push_pull have them.
target_sources(test_messaging PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/pushpull/job.cpp)
target_compile_definitions(test_messaging PRIVATE DTR_READ_TABLE="${CMAKE_CURRENT_SOURCE_DIR}/messaging/read.toml")
target_link_libraries(test_messaging PRIVATE dtr_software_nic)

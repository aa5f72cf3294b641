dtr_fuzzer(fuzz_tcp_requests ${CMAKE_CURRENT_SOURCE_DIR}/fabric_tcp/fuzz_requests.cpp)

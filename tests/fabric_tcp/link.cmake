# See fuzz_requests.cpp; needs clang.
option(DTR_FUZZ "Build the fuzzers" OFF)
if(DTR_FUZZ)
  add_executable(fuzz_tcp_requests ${CMAKE_CURRENT_SOURCE_DIR}/fabric_tcp/fuzz_requests.cpp)
  target_link_libraries(fuzz_tcp_requests PRIVATE dtr_test_support)
  target_link_options(fuzz_tcp_requests PRIVATE -fsanitize=fuzzer)
endif()

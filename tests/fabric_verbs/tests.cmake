# On real devices: the conformance suite with one device and with two rails, and faults on the wire between two.
dtr_vm_test(verbs/conformance test_fabric TIMEOUT 300 ARGS --gtest_filter=*/verbs_device)
dtr_vm_test(verbs/conformance-rails test_fabric RAILS 2 TIMEOUT 300 ARGS --gtest_filter=*/verbs_device_rails)

add_executable(verbs_wire_vm ${CMAKE_CURRENT_LIST_DIR}/wire_vm.cpp ${CMAKE_CURRENT_LIST_DIR}/kill_vm.cpp ${CMAKE_CURRENT_SOURCE_DIR}/fabric/world.cpp)
target_link_libraries(verbs_wire_vm PRIVATE dtr_test_support GTest::gtest_main)
dtr_vm_test(verbs/wire verbs_wire_vm RAILS 2 TIMEOUT 400)
dtr_vm_test(verbs/kills verbs_wire_vm RAILS 2 TIMEOUT 1800 ENVIRONMENT DTR_TEST_KILLS=200 ARGS --gtest_filter=VerbsKillTest.*)
set_tests_properties(verbs/kills PROPERTIES LABELS soak)

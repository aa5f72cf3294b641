# Tests of the project as a whole: its floors, its documentation, its installed form. Included by tests/CMakeLists.txt.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(tests ${PROJECT_SOURCE_DIR}/tests)

add_test(NAME house/floors COMMAND Python3::Interpreter ${tests}/house/floors.py ${PROJECT_SOURCE_DIR})
add_test(NAME house/floors-notices COMMAND Python3::Interpreter ${tests}/house/floors.py --self-test)

list(TRANSFORM MPI_C_INCLUDE_DIRS PREPEND "-I" OUTPUT_VARIABLE mpi_flags)
add_test(NAME docs/examples-compile
         COMMAND Python3::Interpreter ${tests}/docs/examples.py ${PROJECT_SOURCE_DIR} ${CMAKE_CXX_COMPILER}
                 -I${PROJECT_SOURCE_DIR}/lib ${mpi_flags} -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX
                 $<TARGET_FILE:dtr> ${MPI_C_LIBRARIES} -pthread)

add_test(NAME docs/coverage-names-what-is-there
         COMMAND Python3::Interpreter ${tests}/docs/coverage.py ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
add_test(NAME docs/coverage-notices COMMAND Python3::Interpreter ${tests}/docs/coverage.py --self-test)

add_test(NAME install/outside-programs
         COMMAND ${tests}/install/install-test.sh ${PROJECT_BINARY_DIR} ${CMAKE_CXX_COMPILER})

set_tests_properties(house/floors house/floors-notices docs/examples-compile docs/coverage-names-what-is-there
                     docs/coverage-notices install/outside-programs
                     PROPERTIES LABELS unit TIMEOUT 300)
set_tests_properties(docs/examples-compile install/outside-programs PROPERTIES RUN_SERIAL ON)

# Counts are those of one compiler at one optimisation.
if(TARGET bench_hot_paths AND CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_test(NAME house/instructions COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/tests/house/instructions.py
                                           $<TARGET_FILE:bench_hot_paths>)
  set_tests_properties(house/instructions PROPERTIES LABELS unit TIMEOUT 300 SKIP_RETURN_CODE 77)
endif()

find_program(VALGRIND valgrind)
if(VALGRIND AND TARGET dtr_train)
  # The script's own environment has to allow more ranks than cores, and root.
  add_test(NAME house/valgrind-leaks
           COMMAND bash -c "source '${PROJECT_SOURCE_DIR}/scripts/common.sh' && mpi_environment && exec \"$@\"" --
                   ${Python3_EXECUTABLE} ${tests}/house/valgrind_leaks.py mpirun 2 $<TARGET_FILE:dtr_train> --servers 1
                   --max-steps 5 --checkpoint-every 2 --checkpoint-dir ${PROJECT_BINARY_DIR}/valgrind-checkpoints)
  set_tests_properties(house/valgrind-leaks PROPERTIES LABELS valgrind PROCESSORS 2 TIMEOUT 600)
endif()

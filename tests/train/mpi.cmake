# dtr_train as a whole: each script here is one test, which starts the program under mpirun as often as it needs.
function(dtr_train_test name script ranks timeout)
  add_test(NAME train/${name} COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/tests/train/${script}
                                      $<TARGET_FILE:dtr_train> ${ARGN})
  set_tests_properties(train/${name} PROPERTIES LABELS mpi PROCESSORS ${ranks} TIMEOUT ${timeout})
endfunction()

if(TARGET dtr_train)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  dtr_train_test(digest digest_test.py 8 900)
  dtr_train_test(kill-and-resume kill_resume_test.py 4 900 --points 6)
  dtr_train_test(kill-and-resume-200 kill_resume_test.py 4 14400 --points 200)
  set_tests_properties(train/kill-and-resume-200 PROPERTIES LABELS soak)
  dtr_train_test(survivors survivors_test.py 4 900)
  dtr_train_test(stopped-rank stopped_rank_test.py 4 1200)
  dtr_train_test(bad-input bad_input_test.py 4 900)
endif()

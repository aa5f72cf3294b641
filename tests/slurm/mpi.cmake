add_test(NAME slurm/requeue-and-resume
         COMMAND ${PROJECT_SOURCE_DIR}/scripts/slurm-test.sh -- ${CMAKE_CURRENT_LIST_DIR}/requeue-test.sh)
set_tests_properties(slurm/requeue-and-resume PROPERTIES LABELS slurm PROCESSORS 4 TIMEOUT 360 SKIP_RETURN_CODE 77)

# dtr_slurm_test(NAME SCRIPT [ARGUMENT...]): a script on the login node of a two-node Slurm of its own.
function(dtr_slurm_test name script)
  add_test(NAME ${name} COMMAND ${PROJECT_SOURCE_DIR}/scripts/slurm-test.sh -- ${PROJECT_SOURCE_DIR}/tests/slurm/${script}
                                ${ARGN})
  set_tests_properties(${name} PROPERTIES LABELS slurm PROCESSORS 4 TIMEOUT 360 SKIP_RETURN_CODE 77)
endfunction()

dtr_slurm_test(slurm/requeue-and-resume requeue-test.sh)
if(TARGET dtr_info AND IS_DIRECTORY ${PROJECT_SOURCE_DIR}/lib/dtr/fabric/shm)
  dtr_slurm_test(slurm/paths paths-test.sh $<TARGET_FILE:dtr_info>)
endif()
if(TARGET dtr_train)
  dtr_slurm_test(slurm/digest-of-two-nodes digest-test.sh $<TARGET_FILE:dtr_train>)
endif()

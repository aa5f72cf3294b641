# What `cmake --install` gives: headers, the library twice, find_package(dtr), dtr.pc. Apps install themselves.
include(CMakePackageConfigHelpers)

# Every header is public but those in a folder called detail/, and what is inside of a transport.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/lib/dtr DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "detail" EXCLUDE
        PATTERN "fabric/loopback" EXCLUDE PATTERN "fabric/shm" EXCLUDE PATTERN "fabric/tcp" EXCLUDE
        PATTERN "fabric/verbs" EXCLUDE)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/dtr)
install(TARGETS dtr EXPORT dtrTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT dtrTargets NAMESPACE dtr:: DESTINATION ${package_folder})
# Apart from the shared library, because it needs everything that libdtr itself links against.
install(TARGETS dtr_static EXPORT dtrStaticTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT dtrStaticTargets NAMESPACE dtr:: DESTINATION ${package_folder})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/dtrConfig.cmake.in ${PROJECT_BINARY_DIR}/dtrConfig.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/dtrConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/dtrConfig.cmake ${PROJECT_BINARY_DIR}/dtrConfigVersion.cmake
        DESTINATION ${package_folder})

# dtr.pc: where MPI comes with a .pc of its own, that is the better place for its paths.
pkg_check_modules(dtr_mpi QUIET mpi-c)
if(dtr_mpi_FOUND)
  set(DTR_PC_REQUIRES "mpi-c")
else()
  list(TRANSFORM MPI_C_INCLUDE_DIRS PREPEND "-I" OUTPUT_VARIABLE DTR_PC_CFLAGS)
  list(JOIN DTR_PC_CFLAGS " " DTR_PC_CFLAGS)
  list(JOIN MPI_C_LIBRARIES " " DTR_PC_LIBS)
endif()
list(JOIN HDF5_C_LIBRARIES " " DTR_PC_LIBS_PRIVATE)
file(RELATIVE_PATH DTR_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)  # so that the tree can be moved
configure_file(${CMAKE_CURRENT_LIST_DIR}/dtr.pc.in ${PROJECT_BINARY_DIR}/dtr.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/dtr.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# The tests make their own gzip and HDF5 files.
target_link_libraries(test_dataset PRIVATE hdf5::hdf5 PkgConfig::deflate PkgConfig::xxhash)

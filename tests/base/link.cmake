# The tests of generated pages and of scripts need the tree they belong to.
target_compile_definitions(test_base PRIVATE DTR_SOURCE_DIR="${PROJECT_SOURCE_DIR}")

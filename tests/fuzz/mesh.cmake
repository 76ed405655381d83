shoal_fuzz_target(mesh mesh)
target_include_directories(fuzz_mesh PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)

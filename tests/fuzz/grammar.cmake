shoal_fuzz_target(grammar text)
target_include_directories(fuzz_grammar PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)

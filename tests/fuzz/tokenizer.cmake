shoal_fuzz_target(tokenizer text)
target_include_directories(fuzz_tokenizer PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)

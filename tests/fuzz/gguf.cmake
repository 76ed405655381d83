shoal_fuzz_target(gguf model)

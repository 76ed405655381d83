shoal_fuzz_target(control runner)

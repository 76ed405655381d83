shoal_fuzz_target(http api)

shoal_fuzz_target(comm_share comm)

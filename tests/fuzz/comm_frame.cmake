shoal_fuzz_target(comm_frame comm)

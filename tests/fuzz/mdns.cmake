shoal_fuzz_target(mdns mesh)

shoal_fuzz_target(mesh_invite mesh)

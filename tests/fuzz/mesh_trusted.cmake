shoal_fuzz_target(mesh_trusted mesh)

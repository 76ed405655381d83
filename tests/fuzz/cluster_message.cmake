shoal_fuzz_target(cluster_message cluster)
target_include_directories(fuzz_cluster_message PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)

add_executable(comm_bench ${PROJECT_SOURCE_DIR}/bench/comm_bench.c)
target_link_libraries(comm_bench PRIVATE shoal_comm)
shoal_executable(comm_bench)

add_executable(engine_tool ${CMAKE_CURRENT_SOURCE_DIR}/engine_tool.c)
target_link_libraries(engine_tool PRIVATE shoal_engine)
shoal_executable(engine_tool)

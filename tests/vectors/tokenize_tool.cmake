add_executable(tokenize_tool ${CMAKE_CURRENT_SOURCE_DIR}/tokenize_tool.c)
target_link_libraries(tokenize_tool PRIVATE shoal_text)
shoal_executable(tokenize_tool)

add_executable(template_tool ${CMAKE_CURRENT_SOURCE_DIR}/template_tool.c)
target_link_libraries(template_tool PRIVATE shoal_text)
shoal_executable(template_tool)

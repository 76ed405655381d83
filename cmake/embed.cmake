# shoal_embed(target file symbol): makes the file's bytes part of the target, as `const char symbol[]`, which ends with a NUL. The program
# needs no other file at run time. It is also the script that does it: cmake -DINPUT=... -DOUTPUT=... -DSYMBOL=... -P embed.cmake
if(CMAKE_SCRIPT_MODE_FILE)
    file(READ ${INPUT} bytes HEX)
    string(REGEX REPLACE "(................................)" "\\1\n" lines "${bytes}")
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," lines "${lines}")
    file(WRITE ${OUTPUT} "extern const char ${SYMBOL}[];\nconst char ${SYMBOL}[] = {\n${lines}\n0};\n")
    return()
endif()

set(SHOAL_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
function(shoal_embed target file symbol)
    set(output ${PROJECT_BINARY_DIR}/embedded/${symbol}.c)
    add_custom_command(
        OUTPUT ${output}
        COMMAND ${CMAKE_COMMAND} -DINPUT=${file} -DOUTPUT=${output} -DSYMBOL=${symbol} -P ${SHOAL_EMBED_SCRIPT}
        DEPENDS ${file} ${SHOAL_EMBED_SCRIPT}
        COMMENT "Embedding ${file}"
        VERBATIM)
    target_sources(${target} PRIVATE ${output})
endfunction()

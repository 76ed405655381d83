# shoal_library(NAME USES folder... LIBS target...): the static library shoal_NAME of all C files in src/NAME.
function(shoal_library name)
    cmake_parse_arguments(ARG "" "" "USES;LIBS" ${ARGN})
    file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.c)
    list(TRANSFORM ARG_USES PREPEND shoal_)
    if(sources)
        add_library(shoal_${name} STATIC ${sources})
        target_link_libraries(shoal_${name} PRIVATE shoal_options PUBLIC ${ARG_USES} ${ARG_LIBS} Threads::Threads)
    else()
        add_library(shoal_${name} INTERFACE)
        target_link_libraries(shoal_${name} INTERFACE ${ARG_USES} ${ARG_LIBS} Threads::Threads)
    endif()
endfunction()

# Options every program of ours gets.
function(shoal_executable target)
    target_link_libraries(${target} PRIVATE shoal_options)
    set_target_properties(${target} PROPERTIES BUILD_RPATH_USE_ORIGIN ON)
endfunction()

# Unit tests that take seconds. CTest starts them first, so that none of them is left alone at the end.
set(SHOAL_LONG_TESTS
    test_chat_template test_transports test_tcp_handshake test_tcp_path test_placement_speed test_cluster_swarm test_strangers test_join
    test_mesh test_local_set test_http_server test_scheduler_random)

# shoal_unit_tests(folder): one cmocka program for each tests/unit/<folder>/test_*.c, linked with that folder's library; the target
# unit_tests_<folder> builds them all.
function(shoal_unit_tests folder)
    file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/unit/${folder}/test_*.c)
    add_custom_target(unit_tests_${folder})
    foreach(source ${sources})
        get_filename_component(name ${source} NAME_WE)
        string(REPLACE "test_" "test_${folder}_" target ${name})
        add_executable(${target} ${source})
        target_link_libraries(${target} PRIVATE shoal_${folder} shoal_options PkgConfig::CMOCKA)
        target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)
        shoal_executable(${target})
        add_dependencies(unit_tests_${folder} ${target})
        add_test(NAME unit.${folder}.${name} COMMAND ${target})
        set_tests_properties(unit.${folder}.${name} PROPERTIES LABELS unit TIMEOUT 300 SKIP_RETURN_CODE 77)
        if(name IN_LIST SHOAL_LONG_TESTS)
            set_tests_properties(unit.${folder}.${name} PROPERTIES COST 10)
        endif()
    endforeach()
endfunction()

# shoal_fuzz_target(name folder): tests/fuzz/fuzz_<name>.c. With SHOAL_FUZZ it is a libFuzzer program; otherwise it is linked with
# tests/fuzz/replay.c and runs each file of tests/fuzz/corpus/<name>/ as a normal test.
function(shoal_fuzz_target name folder)
    set(target fuzz_${name})
    set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_${name}.c)
    target_link_libraries(${target} PRIVATE shoal_${folder})
    shoal_executable(${target})
    if(SHOAL_FUZZ)
        target_link_options(${target} PRIVATE -fsanitize=fuzzer)
    else()
        target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
        add_test(NAME fuzz.${name} COMMAND ${target} ${corpus})
        set_tests_properties(fuzz.${name} PROPERTIES LABELS fuzz TIMEOUT 300)
    endif()
endfunction()

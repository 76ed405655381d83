# llhttp, the HTTP/1.1 parser, as target llhttp. In order: a system library (9 or later), the sources that
# scripts/llhttp.sh puts into build/deps/llhttp, a distribution's generated sources (Debian's node-llhttp, 8.1).
# src/api refuses by itself what version 8 lets through, so each of them is safe.
pkg_check_modules(LLHTTP QUIET IMPORTED_TARGET libllhttp>=9)
set(SHOAL_LLHTTP_DIR ${PROJECT_SOURCE_DIR}/build/deps/llhttp)
if(LLHTTP_FOUND)
    add_library(llhttp INTERFACE)
    target_link_libraries(llhttp INTERFACE PkgConfig::LLHTTP)
else()
    if(EXISTS ${SHOAL_LLHTTP_DIR}/stamp)
        set(llhttp_sources ${SHOAL_LLHTTP_DIR})
        set(llhttp_include ${SHOAL_LLHTTP_DIR})
    elseif(EXISTS /usr/share/llhttp/llhttp.c AND EXISTS /usr/share/include/llhttp/llhttp.h)
        set(llhttp_sources /usr/share/llhttp)
        set(llhttp_include /usr/share/include/llhttp)
    else()
        message(FATAL_ERROR "llhttp is missing: run scripts/llhttp.sh (make does), or install node-llhttp (Debian) or "
            "llhttp (Homebrew), and configure again")
    endif()
    add_library(llhttp STATIC ${llhttp_sources}/llhttp.c ${llhttp_sources}/api.c ${llhttp_sources}/http.c)
    target_include_directories(llhttp SYSTEM PUBLIC ${llhttp_include})
    target_compile_options(llhttp PRIVATE -w) # generated code
endif()

# What we use and where it comes from: docs/dependencies.md has the reasons.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenSSL 3 REQUIRED COMPONENTS Crypto)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(UV REQUIRED IMPORTED_TARGET libuv)
pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(CURL REQUIRED IMPORTED_TARGET libcurl)
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka)

# Back ends of src/comm that a machine may lack: then they say so when they are asked for.
option(SHOAL_MPI "Build the MPI back end where MPI is installed" ON)
option(SHOAL_UCX "Build the UCX back end where UCX is installed" ON)
set(SHOAL_COMM_LIBS "")
if(SHOAL_MPI)
    find_package(MPI QUIET COMPONENTS C)
    if(MPI_C_FOUND)
        list(APPEND SHOAL_COMM_LIBS MPI::MPI_C)
    endif()
endif()
if(SHOAL_UCX)
    pkg_check_modules(UCX QUIET IMPORTED_TARGET ucx)
    if(UCX_FOUND)
        list(APPEND SHOAL_COMM_LIBS PkgConfig::UCX)
    endif()
endif()

# ggml: a system package, or the private copy that scripts/ggml.sh builds.
file(GLOB SHOAL_GGML_PREFIX ${PROJECT_SOURCE_DIR}/build/deps/ggml/lib/python3*/site-packages/libggml)
list(APPEND CMAKE_PREFIX_PATH ${SHOAL_GGML_PREFIX})
find_package(ggml REQUIRED)
# The package asks for a run path that suits Python wheels, and whose $ORIGIN does not survive the way to the linker. CMake adds the right one.
get_target_property(ggml_link_options ggml::ggml INTERFACE_LINK_OPTIONS)
if(ggml_link_options)
    list(FILTER ggml_link_options EXCLUDE REGEX rpath)
    set_property(TARGET ggml::ggml PROPERTY INTERFACE_LINK_OPTIONS "${ggml_link_options}")
endif()

include(cmake/llhttp.cmake) # target llhttp
include(cmake/rust.cmake)   # target shoal_rust

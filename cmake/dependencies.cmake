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

# ggml: a system package, or the private copy that scripts/ggml.sh builds.
file(GLOB SHOAL_GGML_PREFIX ${PROJECT_SOURCE_DIR}/build/deps/ggml/lib/python3*/site-packages/libggml)
list(APPEND CMAKE_PREFIX_PATH ${SHOAL_GGML_PREFIX})
find_package(ggml REQUIRED)




include(cmake/llhttp.cmake) # target llhttp
include(cmake/rust.cmake)   # target shoal_rust

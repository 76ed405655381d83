# shoal_rust: the static library of src/text/rust. Cargo builds it once into build/rust for all build directories; it takes no part in
# sanitizers or coverage. After the first build (or `cargo fetch`) no network is needed.
find_program(SHOAL_CARGO cargo DOC "Cargo, for src/text/rust")
if(NOT SHOAL_CARGO)
    # Debian's cargo-web is new enough where cargo is not.
    find_program(SHOAL_CARGO cargo PATHS /usr/bin $ENV{HOME}/.cargo/bin NO_DEFAULT_PATH)
endif()
if(NOT SHOAL_CARGO)
    message(FATAL_ERROR "cargo is missing: install Rust 1.87 or newer (Debian: apt-get install cargo-web; others: the distribution's "
                        "rust package or rustup), or say where it is with -DSHOAL_CARGO=/path/to/cargo")
endif()
execute_process(COMMAND ${SHOAL_CARGO} --version OUTPUT_VARIABLE cargo_version ERROR_VARIABLE cargo_error RESULT_VARIABLE cargo_result
                OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" cargo_number "${cargo_version}")
if(NOT cargo_result EQUAL 0 OR NOT cargo_number)
    message(FATAL_ERROR "${SHOAL_CARGO} --version failed: ${cargo_error}")
elseif(cargo_number VERSION_LESS 1.87)
    message(FATAL_ERROR "${SHOAL_CARGO} is ${cargo_number}; shoal needs Rust 1.87 or newer (Debian: apt-get install cargo-web, then "
                        "-DSHOAL_CARGO=/usr/bin/cargo)")
endif()

set(rust_dir ${PROJECT_SOURCE_DIR}/src/text/rust)
set(rust_target_dir ${PROJECT_SOURCE_DIR}/build/rust)
set(rust_library ${rust_target_dir}/release/libshoal_text_rust.a)
file(GLOB rust_sources CONFIGURE_DEPENDS ${rust_dir}/src/*.rs)

# Several build directories may do this at the same time: cargo locks its target directory. A library that is already newer than its
# sources is left alone by cargo, so it is touched to satisfy this build directory too.
add_custom_command(
    OUTPUT ${rust_library}
    COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${rust_target_dir} ${SHOAL_CARGO} build --release --locked --quiet
            --manifest-path ${rust_dir}/Cargo.toml
    COMMAND ${CMAKE_COMMAND} -E touch ${rust_library}
    DEPENDS ${rust_sources} ${rust_dir}/Cargo.toml ${rust_dir}/Cargo.lock
    COMMENT "Building the Rust library of src/text"
    VERBATIM)
add_custom_target(shoal_rust_build DEPENDS ${rust_library})

add_library(shoal_rust STATIC IMPORTED GLOBAL)
set_target_properties(shoal_rust PROPERTIES IMPORTED_LOCATION ${rust_library})
target_link_libraries(shoal_rust INTERFACE Threads::Threads ${CMAKE_DL_LIBS} m)
add_dependencies(shoal_rust shoal_rust_build)

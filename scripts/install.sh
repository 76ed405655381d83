#!/usr/bin/env bash
# install.sh build [test] [vulkan]: installs the system packages that are missing, and says which and why. It changes nothing when all are there.
. "$(dirname "$0")/env.sh"

# package, then why it is needed; the second column of the docs is docs/dependencies.md.
build_packages='
gcc|C compiler
libc6-dev|C library headers
g++|C++ compiler, for ggml
cmake|build system
ninja-build|runs the build
ccache|makes repeated builds quick
pkg-config|finds libraries
python3|fetches ggml and the models
python3-venv|private Python environments
libuv1-dev|event loop
libjansson-dev|JSON
libpcre2-dev|tokenizer regular expressions
libutf8proc-dev|Unicode
libssl-dev|hashes and TLS
libsqlite3-dev|state that survives restarts
libcurl4-openssl-dev|HTTP client: downloads of models, and our own verbs
curl|talks to the API in the demonstration
'
test_packages='
libcmocka-dev|unit tests
clang|second compiler, sanitizers, fuzzing
libclang-rt-14-dev|sanitizer run time
libopenmpi-dev|ranks over MPI
openmpi-bin|ranks over MPI
libucx-dev|ranks over UCX
iproute2|hosts of the network tests
nftables|faults of the network tests
'
vulkan_packages='
libvulkan-dev|GPUs over Vulkan
glslc|compiles the shaders of ggml
spirv-headers|compiles the shaders of ggml
mesa-vulkan-drivers|Vulkan drivers, also one that needs no GPU
'
# Debian 12 has a current Rust under these names; its plain "cargo" is older than what our crates need.
rust_packages='
cargo-web|builds the library of chat templates and grammars
rustc-web|builds the library of chat templates and grammars
'
rust_version_min=1.87

have_rust() {
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    version_at_least "$(cargo --version 2>/dev/null | awk '{print $2}')" $rust_version_min
}

wanted=''
for group in "$@"; do
    case $group in
    build) wanted+=$build_packages && { have_rust || wanted+=$rust_packages; } ;;
    test) wanted+=$test_packages ;;
    vulkan) wanted+=$vulkan_packages ;;
    *) die "install.sh: unknown group '$group'; use build, test or vulkan" ;;
    esac
done

# Elsewhere than on Debian we look for the programs and libraries themselves, and tell what is missing.
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    missing=()
    for program in cc c++ cmake ninja pkg-config python3 curl; do
        command -v $program >/dev/null || missing+=("$program")
    done
    have_rust || missing+=("cargo and rustc >= $rust_version_min")
    for library in libuv jansson libpcre2-8 libutf8proc libcrypto libcurl sqlite3; do
        pkg-config --exists $library 2>/dev/null || missing+=("$library (development files)")
    done
    if [[ " $* " == *" test "* ]]; then
        command -v clang >/dev/null || missing+=(clang)
        pkg-config --exists cmocka 2>/dev/null || missing+=("cmocka (development files)")
    fi
    if [[ " $* " == *" vulkan "* ]]; then
        command -v glslc >/dev/null || missing+=(glslc)
        pkg-config --exists vulkan 2>/dev/null || missing+=("Vulkan and SPIR-V (development files)")
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        say "This system has no apt. Please install with your package manager:"
        printf '      %s\n' "${missing[@]}"
        exit 1
    fi
    exit 0
fi

missing=() reasons=''
while IFS='|' read -r package why; do
    [ -n "$package" ] || continue
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    if [ "$state" != installed ]; then
        missing+=("$package")
        reasons+=$(printf '      %-20s %s' "$package" "$why")$'\n'
    fi
done <<<"$wanted"
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing and need root to install: ${missing[*]}"
    as_root=(sudo)
    sudo -v || die "these packages are missing and need root to install: ${missing[*]}"
fi
say "Installing ${#missing[@]} system packages:"
printf '%s' "$reasons"
run_logged apt-update "reading the package lists" "${as_root[@]}" apt-get update -q
run_logged apt-install "installing packages" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}"

#!/usr/bin/env bash
# ggml.sh: makes sure that there is a ggml to link with: the system's where it is new enough, else our own build of the PyPI source
# package in build/deps/ggml (a Python environment, which is only the box it comes in).
# SHOAL_GPU=vulkan, cuda or hip: one that also computes on GPUs, in build/deps/ggml-$SHOAL_GPU, for `cmake -DSHOAL_GPU=...`.
. "$(dirname "$0")/env.sh"
version_min=0.20.0
gpu=${SHOAL_GPU:-}
name=ggml${gpu:+-$gpu}
prefix=$BUILD/deps/$name

# CMake looks there first, so that is what counts when it is there.
installed() { compgen -G "$prefix/lib/python3*/site-packages/libggml/lib/libggml.so" >/dev/null; }
needs() { command -v "$1" >/dev/null || die "SHOAL_GPU=$gpu needs $1, of $2"; }
options=(
    --config-settings cmake.build-type=Release
    --config-settings cmake.define.GGML_NATIVE=ON # the runner runs where it is built
    --config-settings cmake.define.GGML_OPENMP=OFF # ggml's own thread pool: OpenMP threads spin against ours
)
case $gpu in
'') ;;
vulkan)
    needs glslc "the package glslc (Debian) or the Vulkan SDK; scripts/install.sh vulkan installs it"
    options+=(--config-settings cmake.define.GGML_VULKAN=ON)
    echo '#include <vulkan/vulkan_core.h>' | c++ -E -dM -x c++ - | grep VK_EXT_LAYER_SETTINGS_EXTENSION_NAME >/dev/null ||
        options+=(--config-settings "cmake.define.CMAKE_CXX_FLAGS=-include \"$ROOT/scripts/vulkan_layer_settings.hpp\"")
    ;;
cuda)
    needs nvcc "NVIDIA's CUDA toolkit"
    options+=(--config-settings cmake.define.GGML_CUDA=ON)
    ;;
hip)
    needs hipcc "AMD's ROCm"
    options+=(--config-settings cmake.define.GGML_HIP=ON)
    ;;
*) die "SHOAL_GPU=$gpu: vulkan, cuda or hip" ;;
esac
if command -v ccache >/dev/null; then
    options+=(--config-settings cmake.define.CMAKE_C_COMPILER_LAUNCHER=ccache --config-settings cmake.define.CMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
# Native code is for this processor: a clone that moves to another one builds again.
stamp=$(cat scripts/requirements/ggml.txt <(printf '%s\n' "${options[@]}") <(uname -m) \
    <(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || true) | sha256sum | cut -c1-64)
if installed && { [ -L "$prefix" ] || [ "$(cat "$prefix/stamp" 2>/dev/null || true)" = "$stamp" ]; }; then
    exit 0
fi
if [ -z "$gpu" ] && [ ! -e "$prefix" ] && pkg-config --atleast-version=$version_min ggml 2>/dev/null; then
    note "using the system's ggml $(pkg-config --modversion ggml)"
    exit 0
fi

say "Building ggml, the compute library${gpu:+, for GPUs with $gpu} (once; takes a few minutes)"
rm -rf "$prefix"
python3 -m venv "$prefix"
python=$prefix/bin/python
run_logged "$name-tools" "fetching its build tools" "$python" -m pip install --require-hashes -r scripts/requirements/ggml-build.txt
run_logged "$name-source" "fetching its source" "$python" -m pip download --require-hashes --no-build-isolation --no-deps --no-cache-dir \
    --no-binary libggml-python -d "$prefix/source" -r scripts/requirements/ggml.txt
# From the file and not from the requirement, because Debian 12's pip drops --config-settings for requirement files.
export CMAKE_BUILD_PARALLEL_LEVEL=$JOBS CMAKE_GENERATOR=Ninja
run_logged "$name" "building ggml" "$python" -m pip install --verbose --no-build-isolation --no-deps --no-cache-dir \
    "${options[@]}" "$prefix"/source/*.tar.gz
installed || die "the ggml package was installed, but $prefix has no libggml.so; see build/logs/$name.log"
printf '%s\n' "$stamp" >"$prefix/stamp"

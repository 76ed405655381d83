#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures build/PRESET if that is new, and builds. All targets that can be built are built, so that
# one broken file does not hide the tests of the others; the exit code says whether all went well. SHOAL_GPU: see scripts/ggml.sh.
. "$(dirname "$0")/env.sh"
preset=${1:?usage: build.sh PRESET [TARGET...]}
shift
gpu=${SHOAL_GPU:-}
[ "$preset" != vulkan ] || gpu=vulkan
configure() { cmake --preset "$preset" -U ggml_DIR -D SHOAL_GPU="$gpu"; }
compile() { cmake --build "build/$preset" -j "$JOBS" ${1:+--target "$@"} -- -k 0; }
# A clone that was moved has a cache with the old path in it.
home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "build/$preset/CMakeCache.txt" 2>/dev/null || true)
[ -z "$home" ] || [ "$home" = "$ROOT" ] || rm -rf "build/$preset"
# CMake configures again by itself when its files change; a changed preset, or another ggml, needs our help.
gpu_then=$(sed -n 's/^SHOAL_GPU:STRING=//p' "build/$preset/CMakeCache.txt" 2>/dev/null || true)
if [ ! -f "build/$preset/build.ninja" ] || [ "$gpu_then" != "$gpu" ] || [ CMakePresets.json -nt "build/$preset/build.ninja" ]; then
    run_logged "configure-$preset" "configuring build/$preset" configure
fi
run_logged "build-$preset" "building build/$preset" compile "$@"

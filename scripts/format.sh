#!/usr/bin/env bash
# format.sh: formats all C files with the pinned clang-format.
. "$(dirname "$0")/env.sh"
make_venv "$BUILD/lint" "installing clang-format and clang-tidy" scripts/requirements/lint.txt
folders=()
for folder in src include tests tools bench; do
    [ ! -d $folder ] || folders+=($folder)
done
find "${folders[@]}" -name target -prune -o \( -name '*.c' -o -name '*.h' \) -print0 | xargs -0 -r -P "$JOBS" "$BUILD/lint/bin/clang-format" -i

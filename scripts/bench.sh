#!/usr/bin/env bash
# bench.sh [ARGUMENT...]: builds for speed and runs `shoal bench`. MODEL is the file to measure, the small model if it is not set.
. "$(dirname "$0")/env.sh"
scripts/install.sh build
scripts/libraries.sh
scripts/models.sh
scripts/build.sh release shoal
exec build/release/shoal bench "${MODEL:-build/models/smollm2.gguf}" "$@"

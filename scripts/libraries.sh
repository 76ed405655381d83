#!/usr/bin/env bash
# libraries.sh: everything in build/deps, that is the libraries that the system does not have.
. "$(dirname "$0")/env.sh"
scripts/ggml.sh
if [ ! -f build/deps/llhttp/stamp ]; then
    use_own_python
fi
run_logged llhttp "llhttp, the HTTP parser" sh scripts/llhttp.sh

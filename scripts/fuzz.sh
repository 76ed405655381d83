#!/usr/bin/env bash
# fuzz.sh [TARGET...]: runs libFuzzer on every parser of outside bytes for TIME seconds each (60 by default). New inputs are kept in
# build/fuzz-corpus; an input that fails is left in build/fuzz-found, and belongs into tests/fuzz/corpus once the fault is repaired.
. "$(dirname "$0")/env.sh"
scripts/install.sh build test
scripts/libraries.sh
scripts/build.sh fuzz
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 LSAN_OPTIONS=suppressions=$ROOT/tests/lsan.supp
mkdir -p build/fuzz-corpus build/fuzz-found

names=("$@")
if [ $# -eq 0 ]; then
    for source in tests/fuzz/fuzz_*.c; do
        name=$(basename "$source" .c)
        names+=("${name#fuzz_}")
    done
fi
seconds=${TIME:-60}
say "Fuzzing ${#names[@]} parsers, $seconds s each, $JOBS at a time"

fuzz_one() {
    local name=$1 program seeds=tests/fuzz/corpus/$1
    program=$(find build/fuzz -type f -name "fuzz_$name" -perm -u+x | head -n 1)
    [ -n "$program" ] || { echo "there is no program fuzz_$name"; return 1; }
    mkdir -p "build/fuzz-corpus/$name" "$seeds"
    if "$program" -max_total_time="$2" -print_final_stats=1 -rss_limit_mb=2048 -timeout=10 -artifact_prefix="build/fuzz-found/$name-" \
        "build/fuzz-corpus/$name" "$seeds" >"build/logs/fuzz-$name.log" 2>&1; then
        echo "    $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/logs/fuzz-$name.log") inputs, no fault"
    else
        echo "    $name: FAULT, see build/logs/fuzz-$name.log and build/fuzz-found/$name-*"
        return 1
    fi
}
export -f fuzz_one
printf '%s\0' "${names[@]}" | xargs -0 -P "$JOBS" -I{} bash -c 'fuzz_one "$1" "$2"' _ {} "$seconds" || die "at least one parser has a fault"

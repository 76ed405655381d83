#!/usr/bin/env bash
# test.sh [SUITE...]: installs what tests need, runs the suites (all of them without arguments) and adds up their results. Suites:
#   unit              CTest in build/dev: unit tests and fuzz corpora
#   asan, tsan        the same under sanitizers
#   vulkan            what computes on GPUs, with Mesa's software driver, in build/vulkan; only when it is named
#   lint              the checks of scripts/lint.py
#   any other name    the pytest suite in tests/NAME
# A step that fails is counted as a failed test, and the suites that do not depend on it still run.
. "$(dirname "$0")/env.sh"
results=$BUILD/results
rm -rf "$results" && mkdir -p "$results"

# Folders of tests/unit that have threads or share memory; the others would only cost time under the thread sanitizer. mesh/ is left out:
# its one piece of work for the thread pool is to write a file, and libuv closes descriptors by system calls that the sanitizer does not
# see, so that it takes the file that gets a socket's old number for a race.
tsan_folders='base comm engine runner api node'

export SHOAL_TEST_MODELS=$BUILD/models
# Leaks and reports must fail a test; the suppression files say what is not ours.
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1:abort_on_error=0
export LSAN_OPTIONS=suppressions=$ROOT/tests/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=suppressions=$ROOT/tests/tsan.supp:halt_on_error=1:second_deadlock_stack=1

pytest_suites=()
for folder in tests/*/; do
    if compgen -G "${folder}test_*.py" >/dev/null; then
        pytest_suites+=("$(basename "$folder")")
    fi
done
suites=("$@")
[ $# -gt 0 ] || suites=(unit "${pytest_suites[@]}" asan tsan lint)
wants() { [[ " ${suites[*]} " == *" $1 "* ]]; }

# fail SUITE NAME LOG: a failed step as a failed test of its own, with the end of its log.
fail() {
    python3 - "$results/$1.xml" "$2" "$LOGS/$3.log" <<'PYTHON'
import sys, xml.etree.ElementTree as ET
from pathlib import Path
target, name, log = sys.argv[1:]
suite = ET.parse(target).getroot() if Path(target).exists() else ET.Element("testsuite")
case = ET.SubElement(suite, "testcase", name=name)
text = Path(log).read_text(errors="replace") if Path(log).exists() else "no log"
text = "".join(c for c in text if c in "\n\t" or c >= " ")
lines = text.splitlines()
first = next((i for i, line in enumerate(lines) if line.startswith(("FAILED:", "CMake Error"))), max(0, len(lines) - 40))
ET.SubElement(case, "failure", message="failed").text = "\n".join(lines[first:first + 40])
ET.ElementTree(suite).write(target)
PYTHON
}

# step NAME COMMAND...: part of the preparation.
step() {
    local name=$1
    shift
    if ! "$@"; then
        printf '%s\n' "the step '$name' failed; its own output is above" >"$LOGS/step-$name.log"
        fail setup "setup.$name" "step-$name"
        return 1
    fi
}

build_failed() {
    note "${RED}failed${PLAIN}: building build/$1; details at the end"
    fail setup "build.$1" "build-$1"
}

# build SUITE PRESET TARGET...: notes how long it took.
build() {
    local suite=$1 start=$SECONDS
    shift
    LOG_TAIL=0 scripts/build.sh "$@" || build_failed "$1"
    echo $((SECONDS - start)) >"$results/$suite.build_seconds"
}

# timed SUITE COMMAND...: runs it, notes how long it took; its exit code does not count, its results do.
timed() {
    local suite=$1 start=$SECONDS
    shift
    "$@" || true
    echo $((SECONDS - start)) >"$results/$suite.seconds"
}

# Address randomization with many bits is more than clang 14's thread sanitizer can map.
plain_addresses=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
    plain_addresses=(setarch "$(uname -m)" -R)
fi

# run_ctest SUITE PRESET TARGETS CTEST-ARGUMENTS...: builds the targets ('': all) and runs the tests.
run_ctest() {
    local suite=$1 preset=$2 targets=$3 launcher=()
    shift 3
    say "$suite: CTest in build/$preset"
    build "$suite" "$preset" $targets # words
    [ -f "build/$preset/CTestTestfile.cmake" ] || return 0
    [ "$preset" != tsan ] || launcher=("${plain_addresses[@]}")
    # Three tests for two processors: some of the long ones only wait.
    LOG_TAIL=0 SHOAL_BUILD=$BUILD/$preset run_logged "$suite" "running tests" "${launcher[@]}" ctest --test-dir "build/$preset" \
        -j "$((JOBS + (JOBS + 1) / 2))" --no-tests=ignore --output-junit "$results/$suite.xml" "$@" || note "some tests failed; details at the end"
}

# run_pytest SUITE [BUILD-FOLDER]
run_pytest() {
    local suite=$1 build=${2:-$BUILD/dev} rc=0 workers=(-n "$JOBS")
    # Tests with real nodes use several cores each, and mostly wait. Neighbours in a file share clusters; tests/net/conftest.py keeps those
    # alone that measure times.
    [ "$suite" != net ] || workers=(-n "$((JOBS > 4 ? JOBS / 2 : JOBS > 1 ? 2 : 1))" --dist worksteal)
    say "$suite: pytest in tests/$suite"
    LOG_TAIL=0 SHOAL_BUILD=$build run_logged "$suite" "running tests" "$BUILD/venv/bin/python" -m pytest -p no:cacheprovider "${workers[@]}" -rA -q --durations=10 \
        -o junit_family=xunit2 --junitxml "$results/$suite.xml" "tests/$suite" || rc=$?
    [ $rc -eq 0 ] || note "some tests failed; details at the end"
    [ -f "$results/$suite.xml" ] || fail "$suite" "$suite.start" "$suite"
}

# The driver that needs no GPU, and only that: results must not depend on what is in this computer. ggml takes it only when told to.
run_vulkan() {
    local driver
    driver=$(compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' | head -n 1)
    if [ -z "$driver" ]; then
        echo "there is no software driver in /usr/share/vulkan/icd.d" >"$LOGS/vulkan-driver.log"
        fail vulkan vulkan.driver vulkan-driver
        return 0
    fi
    export VK_ICD_FILENAMES=$driver VK_DRIVER_FILES=$driver GGML_VK_VISIBLE_DEVICES=0 SHOAL_TEST_GPU=Vulkan0
    export GGML_VK_DISABLE_FUSION=1 # this driver compiles each kernel when it is first used, and fused ones take it long
    run_ctest vulkan vulkan '' -R '^unit\.(engine|runner)\.'
    run_pytest gpu "$BUILD/vulkan"
}

run_lint() {
    say "lint: layers, format, links, syntax, clang-tidy"
    LOG_TAIL=0 run_logged lint "running checks" "$BUILD/lint/bin/python" scripts/lint.py --junit "$results/lint.xml" ||
        note "some checks failed; details at the end"
    [ -f "$results/lint.xml" ] || fail lint lint.start lint
    { grep '^note: ' "$LOGS/lint.log" || true; } | sed 's/^note: /    /'
}

# The clients in JavaScript, exactly those of the lock file, in build/js. Without npm their tests are skipped.
make_js() {
    local folder=tests/clients/js hash
    command -v npm >/dev/null || return 0
    hash=$(cat $folder/package.json $folder/package-lock.json | sha256sum | cut -c1-64)
    [ "$(cat "$BUILD/js/stamp" 2>/dev/null || true)" != "$hash" ] || return 0
    rm -rf "$BUILD/js" && mkdir -p "$BUILD/js"
    cp $folder/package.json $folder/package-lock.json "$BUILD/js/"
    run_logged js "installing the JavaScript packages of the tests" \
        env npm_config_cache="${npm_config_cache:-$BUILD/cache/npm}" npm ci --prefix "$BUILD/js" --ignore-scripts --no-audit --no-fund || return 1
    printf '%s\n' "$hash" >"$BUILD/js/stamp"
}

prepare() {
    local vulkan=''
    ! wants vulkan || vulkan=vulkan
    step packages scripts/install.sh build test $vulkan || return 1
    [ -z "$vulkan" ] || step ggml-vulkan env SHOAL_GPU=vulkan scripts/ggml.sh || return 1
    step libraries scripts/libraries.sh || return 1
    step models scripts/models.sh test || true
    step venv make_venv "$BUILD/venv" "installing the Python packages of the tests" scripts/requirements/test.txt \
        $(compgen -G 'tests/*/requirements.txt' || true) || true
    ! wants clients || step js make_js || true
    ! wants lint || step lint-tools make_venv "$BUILD/lint" "installing clang-format and clang-tidy" scripts/requirements/lint.txt || true
}

if prepare; then
    ! wants unit || timed unit run_ctest unit dev ''
    needs_dev=''
    for suite in "${suites[@]}"; do
        case $suite in
        unit | asan | tsan | vulkan) ;;
        lint) [ -f build/dev/compile_commands.json ] || needs_dev=1 ;;
        *) wants unit || needs_dev=1 ;;
        esac
    done
    [ -z "$needs_dev" ] || LOG_TAIL=0 scripts/build.sh dev || build_failed dev
    for suite in "${suites[@]}"; do
        case $suite in
        unit) ;;
        asan) timed asan run_ctest asan asan '' -L 'unit|fuzz' ;;
        tsan) timed tsan run_ctest tsan tsan "$(printf 'unit_tests_%s ' $tsan_folders)" -R "^unit\.(${tsan_folders// /|})\." ;;
        lint) timed lint run_lint ;;
        vulkan) timed vulkan run_vulkan ;;
        *) timed "$suite" run_pytest "$suite" ;;
        esac
    done
fi
python3 scripts/results.py "$results"

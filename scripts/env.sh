# Sourced by the other scripts: where things are, and how progress is shown. Everything we make is below build/.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
BUILD=$ROOT/build
LOGS=$BUILD/logs
JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}
mkdir -p "$LOGS"

# Caches stay in the clone too, unless the user has already chosen a place for them.
export CCACHE_DIR=${CCACHE_DIR:-$BUILD/cache/ccache}
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$BUILD/cache/pip}
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONDONTWRITEBYTECODE=1
# A cargo configuration in the home folder (a mirror, a proxy) must keep its effect, so its home is only moved when there is none.
if [ -z "${CARGO_HOME:-}" ] && [ ! -e "${HOME:-/}/.cargo/config.toml" ] && [ ! -e "${HOME:-/}/.cargo/config" ]; then
    export CARGO_HOME=$BUILD/cache/cargo
fi

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ] && [ -z "${NO_COLOR:-}" ]; then
    TTY=1 BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
    TTY='' BOLD='' DIM='' RED='' GREEN='' PLAIN=''
fi

say() { printf '%s\n' "${BOLD}==>${PLAIN} $*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '%s\n' "${RED}error:${PLAIN} $*" >&2
    exit 1
}

# run_logged LOG TITLE COMMAND...: runs the command with its output in build/logs/LOG.log and shows that it lives: the log's last
# line on a terminal, one line every 15 s elsewhere. A failure prints the last LOG_TAIL lines of the log (0: the caller tells what failed).
run_logged() {
    local log=$LOGS/$1.log title=$2 start=$SECONDS last='' next=15 pid rc=0 line
    shift 2
    : >"$log"
    # A process group of its own, so that interrupting us ends all of it.
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    set +m
    trap 'kill -- "-$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        line=$(tail -c 400 "$log" | tr '\r' '\n' | sed '/^[[:space:]]*$/d' | tail -n 1 | cut -c1-90)
        if [ -n "$TTY" ]; then
            [ "$line" = "$last" ] || printf '\r\e[K    %s %s' "$title" "$DIM$line$PLAIN"
        elif [ $((SECONDS - start)) -ge $next ]; then
            note "$title: $((SECONDS - start)) s, at: $line"
            next=$((next + 15))
        fi
        last=$line
        sleep 0.2
    done
    wait "$pid" || rc=$?
    trap - INT TERM
    [ -z "$TTY" ] || printf '\r\e[K'
    if [ $rc -ne 0 ]; then
        if [ "${LOG_TAIL:-40}" -gt 0 ]; then
            printf '%s\n' "    ${RED}failed${PLAIN}: $title (exit $rc). End of ${log#"$ROOT"/}:"
            tail -n "${LOG_TAIL:-40}" "$log" | sed 's/^/      | /'
        fi
        return $rc
    fi
    note "$title: done in $((SECONDS - start)) s"
}

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Debian's Python has no pip outside of environments, so downloads go through one of our own. Sets PYTHON, which scripts/llhttp.sh heeds.
use_own_python() {
    export PYTHON=$BUILD/deps/python/bin/python
    # The interpreter that it was made with may be gone, or the clone may have moved.
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        rm -rf "$BUILD/deps/python"
        python3 -m venv "$BUILD/deps/python" || die "python3 cannot make environments; is the package python3-venv installed?"
    fi
}

# make_venv FOLDER STAMP-TEXT REQUIREMENT-FILES...: a Python environment with exactly these requirements; instant when nothing changed.
make_venv() {
    local venv=$1 title=$2 hash
    shift 2
    hash=$({ printf '%s\n' "$venv" && cat "$@"; } | sha256sum | cut -c1-64) # with its place, which is written into its programs
    if [ "$(cat "$venv/stamp" 2>/dev/null || true)" = "$hash" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    rm -rf "$venv"
    python3 -m venv "$venv"
    local arguments=() file
    for file in "$@"; do arguments+=(-r "$file"); done
    run_logged "$(basename "$venv")" "$title" "$venv/bin/python" -m pip install "${arguments[@]}"
    printf '%s\n' "$hash" >"$venv/stamp"
}

#!/usr/bin/env bash
# run.sh: from nothing to an answer. Installs what is missing, builds, fetches a small model, starts a cluster of two nodes on this
# computer, asks it a question, and leaves it running. ONCE=1 stops it after the answer. QUESTION is what to ask.
. "$(dirname "$0")/env.sh"
question=${QUESTION:-What is the capital of France?}
model=$BUILD/models/smollm2.gguf
data=$BUILD/run
log=$LOGS/cluster.log

say "Checking what is installed"
scripts/install.sh build
scripts/libraries.sh
say "Building shoal"
scripts/build.sh release shoal
scripts/models.sh

say "Starting two nodes on this computer, which share the model"
mkdir -p "$data"
# It prints one JSON object when it serves.
build/release/shoal local 2 --model "$model" --data-dir "$data" --json >"$data/cluster.json" 2>"$log" </dev/null &
cluster=$!
stop() {
    trap '' INT TERM
    kill "$cluster" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$cluster" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$cluster" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for _ in $(seq 600); do
    if [ -s "$data/cluster.json" ] || ! kill -0 "$cluster" 2>/dev/null; then break; fi
    sleep 0.1
done
if ! api=$(python3 scripts/demo.py address "$data/cluster.json"); then
    tail -n 20 "$log" | sed 's/^/      | /'
    die "the cluster did not start; its log is build/logs/cluster.log"
fi
python3 scripts/demo.py show "$api"

say "Asking: $question"
printf '    '
python3 scripts/demo.py ask "$api" "$question" || die "no answer; the log is build/logs/cluster.log"

printf '\n%s\n' "The cluster serves OpenAI's API at ${BOLD}$api/v1${PLAIN}, for example:"
printf '%s\n' "    curl $api/v1/chat/completions -H 'Content-Type: application/json' \\" \
    "      -d '{\"model\": \"$(python3 scripts/demo.py model "$api")\", \"messages\": [{\"role\": \"user\", \"content\": \"Write a haiku about the sea.\"}]}'"
if [ -n "${ONCE:-}" ]; then
    say "Stopping the cluster, as ONCE was given"
    exit 0
fi
printf '%s\n' "Its log is build/logs/cluster.log. It stays up until you press Ctrl-C."
wait "$cluster" || die "the cluster stopped by itself; its log is build/logs/cluster.log"

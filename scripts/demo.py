"""What scripts/run.sh asks of a running cluster, over its public API.

usage: demo.py address FILE         the API's URL, from what `shoal local --json` printed
       demo.py model URL            the name of the model
       demo.py show URL             where each shard runs
       demo.py ask URL QUESTION     prints the answer as it comes
"""

import json
import sys
import time
import urllib.error
import urllib.request

TIMEOUT_S = 120
# Without it the model's two likeliest first words are less than 0.1 apart for the usual question, one of them goes astray, and the
# rounding of the processor at hand decides. With it the right one leads by 2.
INSTRUCTION = "You answer questions in English, in one short sentence."
# The cluster is on this computer; a proxy that is set up for the network must not be asked.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, timeout: float = 5) -> dict:
    with OPENER.open(url, timeout=timeout) as answer:
        return json.load(answer)


def address(path: str) -> int:
    """The API of the first node, from what `shoal local --json` printed."""
    try:
        with open(path, encoding="utf-8") as file:
            api = json.load(file)["nodes"][0]["api"]
    except (OSError, ValueError, LookupError):
        return 1
    print(api if api.startswith("http") else f"http://{api}")
    return 0


def model_name(url: str) -> str:
    return get(f"{url}/v1/models")["data"][0]["id"]


def show(url: str) -> None:
    for instance in get(f"{url}/v1/cluster/state")["instances"]:
        count = len(instance["ranks"])
        print(f"    {instance['model']} runs on {count} node{'s' * (count != 1)}, split: {instance['split']}")
        for rank in instance["ranks"]:
            begin, end = rank["layers"]
            print(
                f"      rank {rank['rank']}  node {rank['node']:<12} layers {begin:>2} to {end - 1:<3}"
                f" {rank['weight_bytes'] / 1e6:7.1f} MB weights {rank['kv_bytes'] / 1e6:7.1f} MB KV cache   process {rank['pid']}"
            )


def ask(url: str, question: str) -> int:
    body = {
        "model": model_name(url),
        "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 128,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start, first, usage = time.monotonic(), None, None
    try:
        with OPENER.open(request, timeout=TIMEOUT_S) as answer:
            for line in answer:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    print(f"\nerror: {event['error'].get('message')}", file=sys.stderr)
                    return 1
                usage = event.get("usage") or usage
                for choice in event.get("choices", []):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        first = first or time.monotonic()
                        print(text.replace("\n", "\n    "), end="", flush=True)
    except urllib.error.HTTPError as error:
        print(f"\nerror: HTTP {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    end = time.monotonic()
    print()
    if first is None:
        print("error: the answer is empty", file=sys.stderr)
        return 1
    if usage and usage["completion_tokens"] > 1 and end > first:
        print(
            f"    ({usage['prompt_tokens']} tokens read, first word after {first - start:.2f} s; {usage['completion_tokens']} tokens"
            f" written, {(usage['completion_tokens'] - 1) / (end - first):.0f} a second)"
        )
    return 0


def main() -> int:
    verb, where, *rest = sys.argv[1:]
    if verb == "address":
        return address(where)
    if verb == "model":
        print(model_name(where))
    elif verb == "show":
        show(where)
    else:
        return ask(where, *rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

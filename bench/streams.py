#!/usr/bin/env python3
"""Many requests at once: shoal on one node and on two, and llama-server with the same cores, interleaved in one run.

    bench/streams.py MODEL.gguf [-s 1 -s 16] [-p 128] [-n 64] [--rounds 3] [--llama-server PROGRAM]

Tokens per second of all streams together while all of them decode; and the gaps between tokens. shoal is asked over its runners' control link, llama-server
over HTTP (`/completion`, streaming); the HTTP work of either is small beside a step.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import threading
import time
import urllib.request

import contenders as c

ROOT = pathlib.Path(__file__).resolve().parent.parent


def shoal(args, streams, **shape):
    # fmt: off
    out = c.shoal_json(args.shoal, args.model, args.p, args.n, "-s", streams, **shape)
    # fmt: on
    return out["total_tok_s"], out["gap_p50_ms"], out["gap_p99_ms"]


def ask(port, prompt, n, arrivals):
    body = json.dumps({"prompt": prompt, "n_predict": n, "stream": True, "cache_prompt": False, "temperature": 0, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=c.TIMEOUT_S) as answer:
        for line in answer:
            if line.startswith(b"data: ") and not json.loads(line[6:]).get("stop"):
                arrivals.append(time.monotonic())


def llama_server(args, streams, threads):
    port = c.free_port()
    numbers = random.Random(streams)
    # fmt: off
    command = ["taskset", "-c", c.cores(0, threads), args.llama_server, "-m", args.model, "-t", threads, "-tb", threads, "-np", streams,
               "-c", streams * (args.p + args.n + 8), "--host", "127.0.0.1", "--port", port, "--no-webui", "-fa", "on"]
    # fmt: on
    with c.server(command, port):
        for _ in range(600):  # it listens before it has loaded
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        ask(port, [1, 2, 3], 2, [])
        arrivals = [[] for _ in range(streams)]
        prompts = [[numbers.randrange(1000, 40000) for _ in range(args.p)] for _ in range(streams)]
        threads = [threading.Thread(target=ask, args=(port, prompts[i], args.n + 1, arrivals[i])) for i in range(streams)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    begin, end = max(a[0] for a in arrivals), min(a[-1] for a in arrivals)
    gaps = sorted(1000 * (y - x) for a in arrivals for x, y in zip(a, a[1:]))
    n_window = sum(begin < t <= end for a in arrivals for t in a)
    return n_window / (end - begin), gaps[len(gaps) // 2], gaps[len(gaps) * 99 // 100]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--shoal", default=str(ROOT / "build" / "release" / "shoal"))
    parser.add_argument("--llama-server", default=os.environ.get("LLAMA_SERVER"))
    parser.add_argument("-s", type=int, action="append")
    parser.add_argument("-p", type=int, default=128)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    chosen = {}
    for streams in args.s or [1, 16]:
        chosen[f"shoal, 1 core, {streams}"] = lambda s=streams: shoal(args, s)
        chosen[f"shoal, tensor 2, {streams}"] = lambda s=streams: shoal(args, s, ranks=2, split="tensor")
        chosen[f"shoal, pipeline 2, {streams}"] = lambda s=streams: shoal(args, s, ranks=2, split="pipeline")
        if args.llama_server:
            chosen[f"llama-server, 1 core, {streams}"] = lambda s=streams: llama_server(args, s, 1)
            chosen[f"llama-server, 2 cores, {streams}"] = lambda s=streams: llama_server(args, s, 2)
    rounds = []
    for index in range(args.rounds):
        rounds.append({name: measure() for name, measure in chosen.items()})
        print(f"round {index + 1}/{args.rounds}: " + "; ".join(f"{name} {v[0]:.1f}" for name, v in rounds[-1].items()), file=sys.stderr)
    base = next(iter(chosen))
    width = max(map(len, chosen))
    print(f"{'contender, streams':{width}}  tok/s  of base  gap p50 ms  gap p99 ms")
    for name in chosen:
        values = [statistics.median(r[name][i] for r in rounds) for i in range(3)]
        ratio = statistics.median(r[name][0] / r[base][0] for r in rounds)
        print(f"{name:{width}}  {values[0]:5.1f}  {ratio:7.2f}  {values[1]:10.1f}  {values[2]:10.1f}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Speed side by side: shoal on one rank and on two, and llama.cpp on the same cores, interleaved in one run.

    bench/side_by_side.py MODEL.gguf [--llama-bench PROGRAM] [--shoal PROGRAM] [-p 128] [-n 32] [--rounds 5] [--csv FILE]

Each round runs every contender once, one after the other, so that a slower or faster spell of the machine meets all of them; what counts are the ratios
within a round, of which the median is printed. Every rank has one thread on a core of its own. llama-bench is a llama.cpp build that you have; without
it only our own ratios are printed.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=1200).stdout


def shoal(args, ranks, split):
    """(prefill tokens/s, decode tokens/s, peak memory of the largest rank over its weights)"""
    out = json.loads(run([args.shoal, "bench", args.model, "--ranks", str(ranks), "--split", split, "--threads", "1", "--pin",
                          "-p", str(args.p), "-n", str(args.n), "-r", "1", "--json"]))
    memory = max(rank["memory_peak_bytes"] / rank["weight_bytes"] for rank in out["per_rank"])
    return out["prefill_tok_s"], out["decode_tok_s"], memory


def llama(args, threads):
    cores = ",".join(str(core) for core in range(threads))
    out = json.loads(run(["taskset", "-c", cores, args.llama_bench, "-m", args.model, "-t", str(threads), "-p", str(args.p),
                          "-n", str(args.n), "-r", "1", "-o", "json"]))
    speed = {("prefill" if row["n_gen"] == 0 else "decode"): row["avg_ts"] for row in out}
    return speed["prefill"], speed["decode"], None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--shoal", default=str(ROOT / "build" / "release" / "shoal"))
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
    parser.add_argument("-p", type=int, default=128)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv")
    args = parser.parse_args()

    contenders = {
        "shoal, 1 core": lambda: shoal(args, 1, "pipeline"),
        "shoal, 2 ranks of 1 core, tensor": lambda: shoal(args, 2, "tensor"),
        "shoal, 2 ranks of 1 core, pipeline": lambda: shoal(args, 2, "pipeline"),
    }
    if args.llama_bench:
        contenders["llama.cpp, 1 core"] = lambda: llama(args, 1)
        contenders["llama.cpp, 2 cores"] = lambda: llama(args, 2)
    rounds = []
    for index in range(args.rounds):
        rounds.append({name: measure() for name, measure in contenders.items()})
        print(f"round {index + 1}/{args.rounds}: " + "; ".join(f"{n} {v[0]:.1f}/{v[1]:.2f}" for n, v in rounds[-1].items()),
              file=sys.stderr)

    base = "shoal, 1 core"
    rows = []
    for name in contenders:
        def median(value):
            return statistics.median(value(r) for r in rounds)

        memory = rounds[0][name][2]
        rows.append({
            "contender": name,
            "prefill_tok_s": round(median(lambda r: r[name][0]), 1),
            "decode_tok_s": round(median(lambda r: r[name][1]), 2),
            "prefill_ratio": round(median(lambda r: r[name][0] / r[base][0]), 3),
            "decode_ratio": round(median(lambda r: r[name][1] / r[base][1]), 3),
            "peak_over_weights": round(memory, 3) if memory else "",
        })
    width = max(len(row["contender"]) for row in rows)
    print(f"{'':{width}}  prefill  decode  prefill/base  decode/base  peak memory/weights")
    for row in rows:
        print(f"{row['contender']:{width}}  {row['prefill_tok_s']:7}  {row['decode_tok_s']:6}  {row['prefill_ratio']:12}  {row['decode_ratio']:11}"
              f"  {row['peak_over_weights']}")
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

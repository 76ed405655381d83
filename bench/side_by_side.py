#!/usr/bin/env python3
"""Speed side by side: shoal on one rank and on two, and its peers on the same cores, interleaved in one run.

    bench/side_by_side.py MODEL.gguf [-p 128] [-n 32] [--rounds 5] [--csv FILE] [--only TEXT]
        [--llama-bench PROGRAM [--rpc-server PROGRAM]] [--dllama PROGRAM --dllama-model FOLDER]

Each round runs every contender once, one after the other, so that a slower or faster spell of the machine meets all of them; what counts are the ratios
within a round, of which the median is printed. Every rank has one thread on a core of its own. The peers' programs are builds that you have; without
them only our own ratios are printed.
"""

import argparse
import csv
import os
import pathlib
import statistics
import sys

import contenders as c

ROOT = pathlib.Path(__file__).resolve().parent.parent


def choose(args):
    model, p, n = args.model, args.p, args.n
    ours = lambda *options, **shape: lambda: c.shoal(args.shoal, model, p, n, *options, **shape)
    chosen = {
        "shoal, 1 core": ours(),
        "shoal, 2 ranks of 1 core, tensor": ours(ranks=2, split="tensor"),
        "shoal, 2 ranks, tensor, f16 wire": ours("--wire", "f16", ranks=2, split="tensor"),
        "shoal, 2 ranks of 1 core, pipeline": ours(ranks=2, split="pipeline"),
    }
    if args.llama_bench:
        chosen["llama.cpp, 1 core"] = lambda: c.llama_bench(args.llama_bench, model, p, n, 1)
        chosen["llama.cpp, 2 cores"] = lambda: c.llama_bench(args.llama_bench, model, p, n, 2)
        if args.rpc_server:
            chosen["llama.cpp RPC, 2 of 1 core"] = lambda: c.llama_rpc(args.llama_bench, args.rpc_server, model, p, n)
    if args.dllama and args.dllama_model:
        chosen["distributed-llama, 1 core"] = lambda: c.dllama(args.dllama, args.dllama_model, p, n, 1)
        chosen["distributed-llama, 2 of 1 core"] = lambda: c.dllama(args.dllama, args.dllama_model, p, n, 2)
    return {name: measure for name, measure in chosen.items() if name == BASE or not args.only or any(o in name for o in args.only)}


BASE = "shoal, 1 core"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--shoal", default=str(ROOT / "build" / "release" / "shoal"))
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
    parser.add_argument("--rpc-server", default=os.environ.get("LLAMA_RPC_SERVER"))
    parser.add_argument("--dllama", default=os.environ.get("DLLAMA"))
    parser.add_argument("--dllama-model", default=os.environ.get("DLLAMA_MODEL"))
    parser.add_argument("-p", type=int, default=128)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv")
    parser.add_argument("--only", action="append", help="contenders whose names have this text (repeatable); the base runs always")
    args = parser.parse_args()

    chosen = choose(args)
    rounds = []
    for index in range(args.rounds):
        rounds.append({name: measure() for name, measure in chosen.items()})
        print(f"round {index + 1}/{args.rounds}: " + "; ".join(f"{name} {v[0]:.1f}/{v[1]:.2f}" for name, v in rounds[-1].items()),
              file=sys.stderr)

    rows = []
    for name in chosen:
        def median(value):
            return statistics.median(value(r) for r in rounds)

        rows.append({
            "contender": name,
            "prefill_tok_s": round(median(lambda r: r[name][0]), 1),
            "decode_tok_s": round(median(lambda r: r[name][1]), 2),
            "prefill_ratio": round(median(lambda r: r[name][0] / r[BASE][0]), 3),
            "decode_ratio": round(median(lambda r: r[name][1] / r[BASE][1]), 3),
        })
    width = max(len(row["contender"]) for row in rows)
    print(f"{'':{width}}  prefill  decode  prefill/base  decode/base")
    for row in rows:
        print(f"{row['contender']:{width}}  {row['prefill_tok_s']:7}  {row['decode_tok_s']:6}  {row['prefill_ratio']:12}  {row['decode_ratio']:11}")
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

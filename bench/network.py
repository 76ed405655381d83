#!/usr/bin/env python3
"""Two real nodes over an emulated network against one node: network namespaces, a rate (tbf), a delay (the tests' relay). Needs root.

    build/venv/bin/python bench/network.py MODEL.gguf [--mbit 1000] [--rtt-ms 0.2] [-p 256] [-n 64] [--rounds 3] [--repeat] [--build DIR]

Each node has one thread on a core of its own. Per round every arrangement is started, asked once for warmth, then measured once: time to the first token
of a prompt that no cache knows, then tokens a second. The relay copies every frame in user space and shares the two cores with the nodes, so a delay costs
more here than on a wire; without --rtt-ms there is no relay. --repeat asks with text that repeats a phrase, and adds an arrangement that guesses ahead.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "net"))
WORDS = "sea wind stone river light paper engine window garden winter copper island signal bridge market silver forest number".split()


class Cluster:
    def __init__(self, net, args, names, options):
        from node_on_host import Node, make_secret  # they read SHOAL_BUILD when they are imported

        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shoal-bench-"))
        secret = make_secret(self.folder)
        self.model = pathlib.Path(args.model).stem
        self.nodes = []
        for core, name in enumerate(names):
            host = next(h for h in net.hosts if h.name == name)
            node = Node(host, self.folder / name, "--slots", "4", "--ctx", str(args.p + args.n + 128), "--placement", "memory", secret=secret)
            node.core = core
            self.nodes.append(node)
        for node in reversed(self.nodes):
            node.start(*(["--peer", f"{self.nodes[1].host.address}:8421"] if node is self.nodes[0] and len(names) > 1 else []))
            subprocess.run(["taskset", "-apc", str(node.core), str(node.pid())], capture_output=True)
        end = time.monotonic() + 60
        while (self.nodes[0].state() is None or len(self.nodes[0].peers_up()) != len(names) - 1) and time.monotonic() < end:
            time.sleep(0.1)
        body = {"model": str(pathlib.Path(args.model).resolve()), "n_nodes_min": len(names), **options}
        self.nodes[0].order("load", **body)
        self.nodes[0].wait_serving(names, 120)
        for rank in self.nodes[0].state()["instances"][0]["ranks"]:
            core = names.index(rank["node"])
            subprocess.run(["taskset", "-apc", str(core), str(rank["pid"])], capture_output=True)

    def ask(self, n_words, n_max, seed, repeats=False):
        """(prompt tokens, seconds to the first token, tokens after it a second)"""
        words = random.Random(seed)
        phrase = [words.choice(WORDS) for _ in range(8 if repeats else n_words)]
        text = " ".join(phrase[i % len(phrase)] for i in range(n_words))
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": n_max, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}
        begin, times, usage = time.monotonic(), [], None
        process = self.nodes[0].host.start(["curl", "-sSN", "-m", "600", "-H", "Content-Type: application/json", "-d", json.dumps(body),
                                            "http://127.0.0.1:8420/v1/chat/completions"], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                usage = event.get("usage") or usage
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    times.append(time.monotonic())
        process.wait()
        n = usage["completion_tokens"]
        return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"], times[0] - begin, (n - 1) / (times[-1] - times[0])

    def close(self):
        for node in self.nodes:
            node.kill(15)
        for node in self.nodes:
            node.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--build", default=str(ROOT / "build" / "release"))
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--rtt-ms", type=float, default=0)
    parser.add_argument("-p", type=int, default=256)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", action="store_true")
    args = parser.parse_args()
    os.environ["SHOAL_BUILD"] = args.build
    import hosts

    chosen = {
        "one node": (["a"], {"n_draft": 0}),
        "two, tensor, f32 wire": (["a", "b"], {"split": "tensor", "n_draft": 0}),
        "two, tensor, f16 wire": (["a", "b"], {"split": "tensor", "wire": "f16", "n_draft": 0}),
        "two, tensor, q8 wire": (["a", "b"], {"split": "tensor", "wire": "q8", "n_draft": 0}),
        "two, pipeline": (["a", "b"], {"split": "pipeline", "n_draft": 0}),
    }
    if args.repeat:
        chosen["two, tensor, f16 wire, guesses"] = (["a", "b"], {"split": "tensor", "wire": "f16", "n_draft": 8})
    results = {name: [] for name in chosen}
    with hosts.Network() as net:
        for name in "ab":
            host = net.host(name)
            net.rate(host, args.mbit)
            if args.rtt_ms:
                net.delay(host, args.rtt_ms / 4)  # both ways through both hosts' relays
        for index in range(args.rounds):
            for name, (names, options) in chosen.items():
                cluster = Cluster(net, args, names, options)
                try:
                    cluster.ask(16, 8, 1000 + index)
                    n_prompt, first_s, decode = cluster.ask(args.p, args.n, index, args.repeat)
                    results[name].append((n_prompt / first_s, decode))
                finally:
                    cluster.close()
                print(f"round {index + 1}/{args.rounds}: {name} {results[name][-1][0]:.1f}/{results[name][-1][1]:.2f}", file=sys.stderr)
    print(f"{args.mbit} Mbit/s, {args.rtt_ms or 'no added'} ms round trip")
    for name, values in results.items():
        ratios = [statistics.median(v[i] / b[i] for v, b in zip(values, results["one node"])) for i in (0, 1)]
        medians = [statistics.median(v[i] for v in values) for i in (0, 1)]
        print(f"{name:30} prefill {medians[0]:7.1f} tok/s ({ratios[0]:.2f})  decode {medians[1]:6.2f} tok/s ({ratios[1]:.2f})")


if __name__ == "__main__":
    main()

"""Who is measured: each contender is run once by a call, and tells (prefill tokens/s, decode tokens/s). Programs of others are builds that a person has;
docs/performance.md says how ours of today were made."""

import contextlib
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time

TIMEOUT_S = 1800


class Failed(Exception):
    pass


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise Failed(f"{' '.join(str(c) for c in command)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def cores(first, n):
    return ",".join(str(core) for core in range(first, first + n))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def is_listening(port):
    """Looked up, not tried: some servers take the first connection for their client."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in pathlib.Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    return True
    return False


@contextlib.contextmanager
def server(command, port):
    """A program that listens, until the block ends."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                if is_listening(port):
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise Failed(f"{command[0]} ended: {log.read()[-2000:]}")
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# ---- shoal ----


def shoal_json(program, model, p, n, *options, ranks=1, split="pipeline"):
    return json.loads(run([program, "bench", model, "--ranks", ranks, "--split", split, "--threads", 1, "--pin", "-p", p, "-n", n, "-r", 1, "--json",
                           *options]))


def shoal(program, model, p, n, *options, ranks=1, split="pipeline"):
    out = shoal_json(program, model, p, n, *options, ranks=ranks, split=split)
    return out["prefill_tok_s"], out["decode_tok_s"]


# ---- llama.cpp ----


def llama_bench(program, model, p, n, threads, *options, first_core=0):
    out = json.loads(run(["taskset", "-c", cores(first_core, threads), program, "-m", model, "-t", threads, "-p", p, "-n", n, "-r", 1, "-o", "json",
                          *options]))
    speed = {("prefill" if row["n_gen"] == 0 else "decode"): row["avg_ts"] for row in out}
    return speed["prefill"], speed["decode"]


def llama_rpc(bench, rpc_server, model, p, n, *options):
    """Two servers of one core; the client's own thread has little to do, and shares the first core."""
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        for core, port in enumerate(ports):
            stack.enter_context(server(["taskset", "-c", core, rpc_server, "-H", "127.0.0.1", "-p", port, "-t", 1], port))
        servers = ",".join(f"127.0.0.1:{port}" for port in ports)
        return llama_bench(bench, model, p, n, 1, "--rpc", servers, "-ngl", 99, *options)


# ---- distributed-llama ----


def dllama(program, folder, p, n, nodes):
    """folder: model.m and model.t of dllama_model.py. Its tokenizer makes one token of a byte."""
    folder = pathlib.Path(folder)
    # fmt: off
    command = ["taskset", "-c", 0, program, "inference", "--model", folder / "model.m", "--tokenizer", folder / "model.t", "--prompt", "x" * p,
               "--steps", p + n, "--buffer-float-type", "q80", "--nthreads", 1, "--max-seq-len", 2 * (p + n)]
    # fmt: on
    with contextlib.ExitStack() as stack:
        if nodes == 2:
            port = free_port()
            stack.enter_context(server(["taskset", "-c", 1, program, "worker", "--port", port, "--nthreads", 1], port))
            command += ["--workers", f"127.0.0.1:{port}"]
        out = run(command)
    speeds = [float(x) for x in re.findall(r"tokens/s: ([0-9.]+)", out)]
    if len(speeds) != 2:
        raise Failed(out[-2000:])
    return tuple(speeds)

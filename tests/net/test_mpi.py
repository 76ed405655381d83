"""Ranks that mpirun started, and ranks that talk over UCX, give what ranks over TCP give; a death ends them all.

Environment: as test_runners.py. A build without the back end skips its tests and says so.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import urllib.request

import pytest

from cluster import SHOAL
from processes import children, wait_until_gone
from test_runners import PROMPT, model

# Open MPI wants to be asked before it runs as root, or more ranks than cores.
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1"}
# Without guesses: whether one is tried depends on measured time.
OPTIONS = ("--raw", "--ctx", "512", "--threads", "1", "--draft", "0", "--tokens")


def shoal(verb, *options, n_mpi=0):
    return [*(("mpirun", "-n", str(n_mpi)) if n_mpi else ()), str(SHOAL), verb, *options]


def run(command, stdin=None):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, input=stdin)


def tokens(*options, **more):
    done = run(shoal("run", model(), PROMPT, *OPTIONS, "--max-tokens", "20", *options, **more))
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def need(comm):
    """Skips where this build, or this computer, has no such back end."""
    if comm == "mpi" and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    done = run(shoal("run", model(), PROMPT, *OPTIONS, "--max-tokens", "1", "--comm", comm))
    if "this build has no" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def mpi():
    need("mpi")


@pytest.fixture(scope="module")
def ucx():
    need("ucx")


@pytest.fixture
def generating():
    """Starts a long generation and waits for its first token."""
    started = []

    def start(*options, **more):
        process = subprocess.Popen(shoal("run", model(), PROMPT, *OPTIONS, "--max-tokens", "400", *options, **more),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        started.append(process)
        assert process.stdout.readline().strip().isdigit()
        return process, children(process.pid)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_mpi_gives_the_tokens_of_tcp(mpi, split):
    over_tcp = tokens("--ranks", "2", "--split", split)
    assert len(over_tcp) == 20
    assert tokens("--split", split, "--comm", "mpi", n_mpi=2) == over_tcp


@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_ucx_gives_the_tokens_of_tcp(ucx, split):
    assert tokens("--ranks", "2", "--split", split, "--comm", "ucx") == tokens("--ranks", "2", "--split", split)


def test_only_the_head_reads_the_prompt_and_prints(mpi):
    done = run(shoal("run", model(), "-", "--raw", "--ctx", "512", "--threads", "1", "--max-tokens", "5", "--json",
                     "--comm", "mpi", "--ranks", "2", n_mpi=2), stdin=PROMPT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stderr)
    assert figures["n_generated"] == 5 and [rank["rank"] for rank in figures["ranks"]] == [0]


def test_bench_over_mpi(mpi):
    done = run(shoal("bench", model(), "--comm", "mpi", "--threads", "1", "-p", "16", "-n", "8", "-r", "2", "--json", n_mpi=2))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ranks"] == 2 and result["comm"] == "mpi" and len(result["per_rank"]) == 1
    assert result["bytes_sent_per_token"] > 576 * 4


def test_another_number_of_ranks_is_refused(mpi):
    done = run(shoal("run", model(), PROMPT, "--comm", "mpi", "--ranks", "3", n_mpi=2))
    assert done.returncode == 64 and "--ranks 3, but MPI started 2" in done.stderr


def test_an_error_of_one_rank_ends_all(mpi):
    """Only the second rank has no model; the first would wait for it for ever."""
    done = run(["mpirun", "-n", "1", *shoal("run", model(), PROMPT, *OPTIONS, "--comm", "mpi"),
                ":", "-n", "1", *shoal("run", "/nonexistent/x.gguf", PROMPT, *OPTIONS, "--comm", "mpi")])
    assert done.returncode == 66 and "/nonexistent/x.gguf" in done.stderr


def test_ranks_with_other_options_refuse_each_other(mpi):
    done = run(["mpirun", "-n", "1", *shoal("run", model(), PROMPT, *OPTIONS, "--comm", "mpi"),
                ":", "-n", "1", *shoal("run", model(), PROMPT, *OPTIONS, "--comm", "mpi", "--wire", "f16")])
    assert done.returncode != 0 and "would run another program" in done.stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run(mpi, generating, victim):
    process, ranks = generating("--comm", "mpi", n_mpi=2)
    assert len(ranks) == 2
    start = time.monotonic()
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 10
    assert process.returncode != 0 and errors.strip() != ""
    assert wait_until_gone(ranks, 1) == []


def test_interrupting_the_head_cancels(mpi, generating):
    process, ranks = generating("--comm", "mpi", n_mpi=2)
    os.kill(ranks[0], signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "cancelled" in errors
    assert wait_until_gone(ranks, 1) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_over_ucx(ucx, generating, victim):
    process, ranks = generating("--ranks", "2", "--comm", "ucx")
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 69 and f"rank {victim}" in errors and "signal 9" in errors
    assert wait_until_gone(ranks, 1) == []


def test_a_missing_back_end_says_so_at_once():
    """Whichever this build lacks; with all of them there is nothing to see."""
    model()
    n_missing = 0
    for comm in ("mpi", "ucx"):
        done = run(shoal("run", model(), PROMPT, *OPTIONS, "--max-tokens", "1", "--comm", comm))
        if done.returncode != 0:
            n_missing += 1
            assert "this build has no" in done.stderr and "build again" in done.stderr
    if n_missing == 0:
        pytest.skip("this build has MPI and UCX")


def thread_names(pid):
    return {path.read_text().strip() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/comm")}


def test_nodes_talk_over_ucx(ucx):
    """UCX has a thread of its own in each runner, named async."""
    nodes = subprocess.Popen(shoal("local", "2", "--model", model(), "--split", "pipeline", "--ctx", "512", "--threads", "1",
                                   "--transport", "ucx", "--json"), stdout=subprocess.PIPE, text=True)
    try:
        started = json.loads(nodes.stdout.readline())["nodes"]
        runners = [runner["pid"] for node in started for runner in node["runners"]]
        assert len(runners) == 2 and all("async" in thread_names(pid) for pid in runners)
        body = {"model": "smollm2", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(started[1]["api"] + "/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["usage"]["completion_tokens"] == 8
    finally:
        nodes.terminate()
        nodes.wait(timeout=20)
        nodes.stdout.close()


def test_an_unknown_transport_is_refused():
    model()
    done = run(shoal("serve", "--transport", "carrier-pigeon"))
    assert done.returncode == 64 and "tcp or ucx" in done.stderr

"""`shoal run` with real processes: ranks agree bit for bit, deaths are noticed, nothing is left behind.

Environment: SHOAL_BUILD (build directory, default build/dev), SHOAL_TEST_MODELS (folder, default build/models).
"""
import json
import os
import signal
import subprocess
import time

import pytest

from cluster import SHOAL, need_model
from processes import children, wait_until_gone

PROMPT = "The history of the lighthouse begins"


def model():
    return str(need_model())


def command(*options, max_tokens=20):
    return [str(SHOAL), "run", model(), PROMPT, "--raw", "--ctx", "1024", "--threads", "1",
            "--max-tokens", str(max_tokens), *options]


def tokens(*options, **more):
    done = subprocess.run(command("--tokens", *options, **more), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.fixture
def generating():
    """Starts a long generation on several ranks and waits for its first token."""
    started = []

    def start(n_ranks, *options):
        process = subprocess.Popen(command("--tokens", "--ranks", str(n_ranks), *options, max_tokens=1000),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline().strip().isdigit()
        ranks = children(process.pid)
        assert len(ranks) == n_ranks
        return process, ranks

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def alone():
    return tokens()


@pytest.mark.parametrize("options", [
    ("--ranks", "1", "--comm", "tcp"),
    ("--ranks", "2"),
    ("--ranks", "3"),
    ("--ranks", "2", "--comm", "local"),
    ("--ranks", "3", "--comm", "local"),
], ids=" ".join)
def test_a_pipeline_gives_the_same_tokens(alone, options):
    assert len(alone) == 20
    assert tokens(*options) == alone


def test_tensor_ranks_agree_whatever_the_transport():
    over_tcp = tokens("--ranks", "2", "--split", "tensor")
    assert over_tcp == tokens("--ranks", "2", "--split", "tensor", "--comm", "local")


def test_a_seed_repeats_an_answer():
    options = ("--temperature", "0.9", "--top-p", "0.95", "--seed", "7")
    first = tokens(*options)
    assert first == tokens(*options, "--ranks", "2")
    assert first != tokens("--temperature", "0.9", "--top-p", "0.95", "--seed", "8")


def test_figures_name_every_rank():
    done = subprocess.run(command("--json", "--ranks", "2"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    figures = json.loads(done.stderr)
    assert figures["n_generated"] == 20 and figures["decode_tok_s"] > 0
    assert [rank["layer_first"] for rank in figures["ranks"]] == [0, figures["ranks"][0]["n_layers"]]


@pytest.mark.alone
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_is_named_at_once(generating, victim):
    process, ranks = generating(3)
    start = time.monotonic()
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - start < 2
    assert process.returncode == 69
    assert f"rank {victim}" in errors and str(ranks[victim]) in errors and "signal 9" in errors
    assert wait_until_gone(ranks, 0.5) == []


def test_no_rank_outlives_its_parent(generating):
    process, ranks = generating(3)
    process.kill()
    process.wait()
    assert wait_until_gone(ranks, 3) == []


def test_interrupting_cancels(generating):
    process, ranks = generating(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "cancelled" in errors
    assert wait_until_gone(ranks, 0.5) == []


def test_a_stopped_rank_does_not_keep_its_process(generating):
    """A rank that hangs (here: stopped) is killed when the others are done with it."""
    process, ranks = generating(2)
    os.kill(ranks[1], signal.SIGSTOP)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert time.monotonic() - start < 5
    assert wait_until_gone(ranks, 0.5) == []


def test_a_missing_model_is_an_error():
    model()
    done = subprocess.run([str(SHOAL), "run", "/nonexistent/x.gguf", "hello"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 66 and "/nonexistent/x.gguf" in done.stderr


def test_a_prompt_that_is_too_long_says_so():
    done = subprocess.run([str(SHOAL), "run", model(), "word " * 100, "--raw", "--ctx", "32"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 65 and "32" in done.stderr


def test_bench_reports_speeds():
    done = subprocess.run([str(SHOAL), "bench", model(), "--ranks", "2", "--threads", "1", "-p", "16", "-n", "8",
                           "-r", "2", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prefill_tok_s"] > 0 and len(result["decode_tok_s_all"]) == 2
    assert result["bytes_sent_per_token"] > 576 * 4 and len(result["per_rank"]) == 2


def test_verbs_are_explained():
    if not SHOAL.exists():
        pytest.skip("not built")
    done = subprocess.run([str(SHOAL), "bnech"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 64 and "bench" in done.stderr
    assert "run " in subprocess.run([str(SHOAL), "--help"], capture_output=True, text=True, timeout=10).stdout

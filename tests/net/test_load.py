"""Many requests at a real cluster: every one is answered, the cache's memory is shared, and `shoal profile` and `shoal bench` say where the time goes."""

import concurrent.futures
import json
import pathlib
import subprocess

import pytest

from answers import check_answer
from cluster import SHOAL, Cluster, Stream, need_model, state, wait_for

SPLITS = ["pipeline", "tensor"]


@pytest.fixture(params=SPLITS)
def cluster(request):
    need_model()
    c = Cluster(2, "--split", request.param, "--slots", "16", "--threads", "1")
    c.wait_serving()
    yield c
    c.stop()


def ask(cluster, index, n_max=8):
    stream = Stream(cluster.apis[index % 2], prompt=f"Count from {index} to {index + 5}.", n_max=n_max)
    return index, *stream.rest()


def test_100_streams(cluster):
    """More than slots: the others wait. At both nodes' APIs, none is lost, and the answers are the model's."""
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda i: ask(cluster, i), range(100)))
    for index, text, reason, usage in answers:
        assert reason in ("stop", "length") and usage["completion_tokens"] <= 8, (index, text, reason)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len({text for _, text, _, _ in answers}) > 50  # not one answer for all
    for index, text, _, usage in answers[::25]:
        check_answer(f"Count from {index} to {index + 5}.", text, usage)


def test_profile_names_the_ranks(cluster):
    watch = subprocess.Popen([str(SHOAL), "profile", "--api", cluster.apis[1], "--seconds", "6", "--json"], stdout=subprocess.PIPE, text=True)
    for index in range(6):
        ask(cluster, index, 150)
    out = json.loads(watch.communicate(timeout=60)[0])
    assert len(out) == 1 and out[0]["model"] == "smollm2" and out[0]["generated_tokens"] > 0, out
    assert out[0]["advice"].endswith(".\n")
    assert [rank["rank"] for rank in out[0]["ranks"]] == [0, 1]
    for rank in out[0]["ranks"]:
        assert rank["steps"] > 0 and 0 < rank["compute_s"] <= rank["step_s"] <= out[0]["seconds"] * 1.2, rank
        assert rank["bytes_sent"] > 0, rank


def test_profile_of_an_idle_cluster():
    need_model()
    c = Cluster(1)
    try:
        c.wait_serving()
        done = subprocess.run([str(SHOAL), "profile", "--api", c.apis[0], "--seconds", "1"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "no model has run a step" in done.stdout
        done = subprocess.run([str(SHOAL), "profile", "--api", "http://127.0.0.1:9"], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and "127.0.0.1:9" in done.stderr
    finally:
        c.stop()


def test_a_cache_smaller_than_its_users():
    """Eight conversations of up to 180 tokens in a cache of 1,024: some wait, all end as they should."""
    need_model()
    c = Cluster(2, "--split", "pipeline", "--slots", "8", "--kv-tokens", "1024", "--threads", "1")
    try:
        c.wait_serving()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: ask(c, i, 140), range(8)))
        for index, text, reason, usage in answers:
            assert reason in ("stop", "length"), (index, reason)
            check_answer(f"Count from {index} to {index + 5}.", text, usage)
        wait_for("nothing runs", lambda: state(c.apis[0])["requests"]["running"] == 0)
    finally:
        c.stop()


def bench(*options):
    arguments = [str(SHOAL), "bench", str(need_model()), "-p", "64", "-n", "16", "-r", "2", "--threads", "1", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def test_bench_of_streams():
    out = json.loads(bench("-s", "8", "-n", "48", "--ranks", "2", "--split", "pipeline", "--json").stdout)
    assert out["streams"] == 8 and out["total_tok_s"] > 0 and out["gap_p99_ms"] >= out["gap_p50_ms"] > 0
    for rank in out["per_rank"]:
        assert 0 < rank["comm_ns"] + rank["graph_ns"] + rank["sample_ns"] + rank["fill_ns"] <= rank["step_ns"]


@pytest.mark.alone
def test_bench_of_a_prompt_seen_before():
    out = json.loads(bench("--prompt", "same", "-p", "512", "-r", "3", "--json").stdout)
    assert out["first_ms"] < 0.5 * out["first_prompt"]["first_ms"], out  # and far less where nothing else runs


@pytest.mark.alone
def test_bench_remembers(tmp_path):
    history = tmp_path / "history.jsonl"
    assert bench("--history", str(history)).returncode == 0
    first = json.loads(pathlib.Path(history).read_text())
    # As if it had been ten times as fast before.
    line = history.read_text().replace(f'"decode_tok_s":{first["decode_tok_s"]:.4f}', f'"decode_tok_s":{10 * first["decode_tok_s"]:.4f}', 1)
    history.write_text(line)
    done = bench("--history", str(history))
    assert done.returncode == 1 and "slower: decode_tok_s" in done.stderr, done.stderr
    assert len(history.read_text().splitlines()) == 2
    done = bench("--history", str(history), "--draft", "4")  # another workload: nothing to compare with
    assert done.returncode == 0 and "slower" not in done.stderr, done.stderr

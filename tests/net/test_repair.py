"""What clients see when a part of the cluster dies in the middle of an answer: the answer goes on.

Whoever the victim is (runner, node with the head, another stage, a tensor rank, the coordinator), the stream has no error, nothing that
was sent is lost or repeated, usage is right, and what came after is what the model says there: near ties may go the other way, since
another split, or a prompt that is read anew, rounds differently (docs/internals/numerics.md).
"""

import os
import re
import signal
import subprocess
import time

import pytest

from answers import check_answer
from cluster import PROMPT, SHOAL, Cluster, Stream, chat, get, state, wait_for
from processes import alive

N_MAX = 80
REPAIR_S = 3.0  # until the stream goes on, asked of a quiet computer
SLACK = 4.0  # tests share a small one


class Disturbed:
    """A stream that is under way; measures the longest pause after the disturbance."""

    def __init__(self, api, n_max=N_MAX):
        self.stream = Stream(api, n_max=n_max)
        self.text = "".join(self.stream.texts(6))

    def finish(self, n_max=N_MAX):
        start, longest, last = time.monotonic(), 0.0, time.monotonic()
        pieces, reason, usage = [self.text], None, None
        for event in self.stream:
            assert "error" not in event, event
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                pieces.append(choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
        self.stream.close()
        text = "".join(pieces)
        assert reason in ("stop", "length")
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        if reason == "length":
            assert usage["completion_tokens"] == n_max
        check_answer(PROMPT, text, usage)
        print(f"the longest pause: {longest:.2f} s; {time.monotonic() - start:.1f} s in all")
        return longest


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("asked", [0, 1])
def test_runner_killed(pair, rank, asked):
    restarts = state(pair.apis[0])["instances"][0]["restarts"]
    disturbed = Disturbed(pair.apis[asked])
    os.kill(pair.runners()[rank], signal.SIGKILL)
    assert disturbed.finish() < REPAIR_S * SLACK
    assert all(alive(pid) for pid in pair.pids)
    pair.wait_serving(restarts=restarts + 1)
    assert state(pair.apis[asked])["requests"]["repaired"] > 0
    assert state(pair.apis[asked])["requests"]["failed"] == 0


def test_new_requests_while_the_model_restarts(pair):
    restarts = state(pair.apis[0])["instances"][0]["restarts"]
    os.kill(pair.runners()[1], signal.SIGKILL)
    wait_for("the failure is noticed", lambda: state(pair.apis[0])["instances"][0]["status"] != "serving", 5)
    try:
        chat(pair.apis[0])
    except RuntimeError as refused:
        assert refused.args[0] == 503
    pair.wait_serving(restarts=restarts + 1)
    assert chat(pair.apis[0])


# how many nodes, options, victim: a function of the state; signal
def by_rank(index):
    return lambda s: s["instances"][0]["ranks"][index]["node"]


VICTIMS = {
    "two nodes, other stage": (2, [], by_rank(1)),
    "two nodes, head": (2, [], by_rank(0)),
    "three nodes, head": (3, [], by_rank(0)),
    "three nodes, middle stage": (3, [], by_rank(1)),
    "three nodes, last stage": (3, [], by_rank(2)),
    "two nodes, tensor rank": (2, ["--split", "tensor"], by_rank(1)),
    "three nodes, coordinator": (3, [], lambda s: s["coordinator"]),
}


def run_victim(n, options, victim, number):
    cluster = Cluster(n, *options)
    try:
        now = state(cluster.apis[0])
        name = victim(now)
        asked = next(node for node in cluster.nodes if node["name"] != name)
        disturbed = Disturbed(asked["api"])
        start = time.monotonic()
        os.kill(cluster.pid_of(name), number)
        pause = disturbed.finish()
        after = state(asked["api"])
        assert {rank["node"] for rank in after["instances"][0]["ranks"]} == {m["name"] for m in cluster.nodes} - {name}
        assert after["coordinator"] not in (None, name)
        assert {node["name"]: node["status"] for node in after["nodes"]}[name] == "gone"
        assert chat(asked["api"])
        print(f"{time.monotonic() - start:.1f} s in all")
        return pause
    finally:
        if number == signal.SIGSTOP:
            os.kill(cluster.pid_of(name), signal.SIGCONT)
        pids = cluster.all_pids()
        cluster.stop()
        wait_for("all processes are gone", lambda: not [pid for pid in pids if alive(pid)], 20)


@pytest.mark.parametrize("case", VICTIMS)
def test_node_killed(case):
    assert run_victim(*VICTIMS[case], signal.SIGKILL) < REPAIR_S * SLACK


@pytest.mark.parametrize("case", ["two nodes, head", "three nodes, middle stage"])
def test_node_stopped(case):
    """SIGSTOP: the node is there, its links are open, and it says nothing."""
    assert run_victim(*VICTIMS[case], signal.SIGSTOP) < REPAIR_S * SLACK


def test_what_is_loaded_stays(tmp_path):
    """The runners of those who live go on, with the layers that they had, and end when the model is unloaded."""
    with open(tmp_path / "log", "w") as log:
        cluster = Cluster(3, log=log)
        try:
            ranks = state(cluster.apis[0])["instances"][0]["ranks"]
            before = {rank["node"]: rank["pid"] for rank in ranks}
            victim = ranks[1]["node"]
            asked = next(node["api"] for node in cluster.nodes if node["name"] != victim)
            disturbed = Disturbed(asked)
            os.kill(cluster.pid_of(victim), signal.SIGKILL)
            assert disturbed.finish() < REPAIR_S * SLACK
            after = {rank["node"]: rank["pid"] for rank in state(asked)["instances"][0]["ranks"]}
            assert after == {node: pid for node, pid in before.items() if node != victim}
            kept = re.findall(r"weights: ([\d.]+) of ([\d.]+) MiB were there", (tmp_path / "log").read_text())
            print(f"kept: {kept}")
            assert len(kept) == 2
            assert all(float(part) > float(whole) / 2 for part, whole in kept)
            subprocess.run([SHOAL, "unload", "smollm2", "--api", asked], check=True, timeout=20)
            wait_for("its memory is free", lambda: not [pid for pid in after.values() if alive(pid)], 5)
        finally:
            cluster.stop()


def test_killed_node_comes_back():
    """It takes its place again, with its identity."""
    cluster = Cluster(2)
    try:
        ids = {node["id"] for node in state(cluster.apis[0])["nodes"]}
        stream = Disturbed(cluster.apis[0])
        os.kill(cluster.pid_of("node-2"), signal.SIGSTOP)
        stream.finish()
        os.kill(cluster.pid_of("node-2"), signal.SIGCONT)
        wait_for("both are members again", lambda: {n["id"] for n in state(cluster.apis[0])["nodes"] if n["status"] == "up"} == ids, 20)
        wait_for("one coordinator", lambda: len({state(api)["coordinator"] for api in cluster.apis}) == 1, 10)

        def both():
            found = [state(api)["instances"] for api in cluster.apis]
            return all(len(i) == 1 and i[0]["status"] == "serving" and len(i[0]["ranks"]) == 2 for i in found)

        wait_for("both hold a part again", both, 30)
        assert chat(cluster.apis[0]) == chat(cluster.apis[1])
    finally:
        cluster.stop()


def test_all_apis_know_the_model(pair):
    for api in pair.apis:
        assert [model["id"] for model in get(api, "/v1/models")[1]["data"]] == ["smollm2"]


def test_eight_nodes_lose_three():
    """A pipeline of eight; a stream at the one that is left alone for last."""
    cluster = Cluster(8, "--threads", "1")
    try:
        assert len(state(cluster.apis[7])["instances"][0]["ranks"]) == 8
        disturbed = Disturbed(cluster.apis[7], n_max=60)
        for name in ("node-1", "node-4", "node-6"):
            os.kill(cluster.pid_of(name), signal.SIGKILL)
        assert disturbed.finish(60) < 10 * SLACK
        cluster.wait_serving(cluster.apis[7])
        assert len(state(cluster.apis[7])["instances"][0]["ranks"]) == 5
    finally:
        cluster.stop()

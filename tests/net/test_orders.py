"""What people tell a cluster, by the program's verbs: load, plan, drain, join, and what they are told when it cannot be."""

import contextlib
import json
import shutil
import signal
import subprocess
import time

import pytest

from cluster import SHOAL, Cluster, Stream, chat, need_model, state, wait_for
from control_groups import slow_group
from processes import alive


def shoal(verb, *arguments, api, fails=False):
    """The JSON that a verb prints; the message of its failure."""
    done = subprocess.run([SHOAL, verb, *map(str, arguments), "--api", api, "--json"], capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == fails, (done.returncode, done.stdout, done.stderr)
    return done.stderr if fails else json.loads(done.stdout or "null")


@contextlib.contextmanager
def serve(folder, *options, enter=None, measured=False):
    """One node that belongs to no cluster yet; yields its API."""
    arguments = [SHOAL, "serve", "--name", folder.name, "--data-dir", folder, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0",
                 "--no-discovery", "--threads", "1", "--ctx", "1024", *([] if measured else ["--no-measure"]), *options]
    folder.mkdir(exist_ok=True)
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=enter)
    try:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        yield next(word.rstrip(",") for word in line.split() if word.startswith("http://")), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def mesh_of(api):
    return next(node["mesh"] for node in state(api)["nodes"] if node["is_self"])


def up(api):
    return {node["name"] for node in state(api)["nodes"] if node["status"] == "up"}


def holders(api):
    instances = state(api)["instances"]
    return {rank["node"] for i in instances for rank in i["ranks"]} if instances and instances[0]["status"] == "serving" else set()


def test_load_drain_unload():
    model = need_model()
    cluster = Cluster(2, model=False)
    first, second = cluster.apis
    try:
        plan = shoal("plan", model, api=first)
        assert plan["candidates"][0]["feasible"] and all(c["reason"] for c in plan["candidates"])
        assert {len(c["ranks"]) for c in plan["candidates"]} >= {1, 2}
        shoal("load", model, "--split", "pipeline", api=second)
        wait_for("both hold a part", lambda: holders(first) == holders(second) == {"node-1", "node-2"}, 30)
        before = chat(first)
        shoal("drain", "node-1", api=second)
        wait_for("node-1 is empty", lambda: holders(second) == {"node-2"}, 30)
        assert chat(first) == before
        assert next(n for n in state(second)["nodes"] if n["name"] == "node-1")["is_drained"]
        shoal("undrain", "node-1", api=first)
        wait_for("both again", lambda: holders(first) == {"node-1", "node-2"}, 30)
        shoal("unload", "smollm2", api=first)
        wait_for("it is gone", lambda: not state(first)["instances"] and not state(second)["instances"], 20)
        assert "smollm2" in shoal("unload", "smollm2", api=first, fails=True)
        assert "nobody" in shoal("drain", "nobody", api=first, fails=True)
        assert "/no/such.gguf" in shoal("load", "/no/such.gguf", api=first, fails=True)
    finally:
        cluster.stop()


@pytest.fixture
def home(tmp_path):
    with serve(tmp_path / "home") as (api, _):
        yield api


def test_invite_works_once(home, tmp_path):
    line = shoal("invite", api=home)["invite"]
    with serve(tmp_path / "guest") as (guest, _), serve(tmp_path / "thief") as (thief, _):
        shoal("join", line, api=guest)
        wait_for("they know each other", lambda: up(home) == up(guest) == {"home", "guest"}, 10)
        assert "used" in shoal("join", line, api=thief, fails=True)
        assert shoal("join", line[:-4] + "0000", api=thief, fails=True)
        assert shoal("join", "shoal://127.0.0.1:1/zz", api=thief, fails=True)
        assert up(thief) == {"thief"} and up(home) == {"home", "guest"}
        refused = state(home)["mesh_errors"]["refused_because"]
        assert refused["invite_used"] == 1
    # It is a member for ever, until it is revoked.
    wait_for("it has left", lambda: up(home) == {"home"}, 10)
    with serve(tmp_path / "guest", "--peer", mesh_of(home)) as (guest, _):
        wait_for("it is back", lambda: up(home) == {"home", "guest"}, 10)
        shoal("revoke", "guest", api=home)
        wait_for("it is out", lambda: up(home) == {"home"}, 10)
        wait_for("and is refused", lambda: state(home)["mesh_errors"]["refused_because"]["revoked"] > 0, 10)


def test_expired_invite(home, tmp_path):
    line = shoal("invite", "--valid", "1", api=home)["invite"]
    time.sleep(1.5)
    with serve(tmp_path / "late") as (late, _):
        assert "expired" in shoal("join", line, api=late, fails=True)


def test_both_sides_show_the_same_code(home, tmp_path):
    with serve(tmp_path / "guest", "--peer", mesh_of(home)) as (guest, _):
        wait_for("it has asked", lambda: shoal("requests", api=home)["requests"] and shoal("requests", api=guest)["requests"], 10)
        here, there = (shoal("requests", api=api)["requests"][0] for api in (home, guest))
        assert here["code"] == there["code"] and len(here["code"]) == 6
        assert (here["name"], there["name"]) == ("guest", "home")
        wrong = f"{(int(here['code']) + 1) % 1000000:06d}"
        assert shoal("approve", wrong, api=home, fails=True)
        assert up(home) == {"home"}
        shoal("approve", here["code"], api=home)
        wait_for("they are one cluster", lambda: up(home) == up(guest) == {"home", "guest"}, 10)


def test_denied(home, tmp_path):
    with serve(tmp_path / "guest", "--peer", mesh_of(home)) as (guest, _):
        wait_for("it has asked", lambda: shoal("requests", api=home)["requests"], 10)
        shoal("deny", shoal("requests", api=home)["requests"][0]["code"], api=home)
        wait_for("it is told", lambda: state(home)["mesh_errors"]["refused_because"]["denied"] > 0, 10)
        assert up(home) == {"home"} and up(guest) == {"guest"}


def test_wrong_secret(tmp_path):
    (tmp_path / "one").write_text("the secret of one cluster")
    (tmp_path / "two").write_text("the secret of another one")
    with serve(tmp_path / "a", "--secret-file", tmp_path / "one", "--closed") as (a, _):
        with serve(tmp_path / "b", "--secret-file", tmp_path / "two", "--closed", "--peer", mesh_of(a)) as (b, _):
            wait_for("it is refused", lambda: state(a)["mesh_errors"]["refused_because"]["wrong_secret"] > 0, 10)
            assert up(a) == {"a"} and up(b) == {"b"}
        with serve(tmp_path / "c", "--secret-file", tmp_path / "one", "--peer", mesh_of(a)) as (c, _):
            wait_for("it is a member", lambda: up(a) == up(c) == {"a", "c"}, 10)


@pytest.mark.parametrize("share", [(1, 2, 4)])
def test_layers_follow_memory(share, tmp_path):
    """Limits of memory of 1 : 2 : 4 give layers to match."""
    model = need_model()
    (tmp_path / "secret").write_text("a secret of three nodes here")
    with contextlib.ExitStack() as stack:
        apis = []
        for i, parts in enumerate(share):
            peer = ["--peer", mesh_of(apis[0])] if apis else []
            options = ["--memory", 1024 * parts, "--secret-file", tmp_path / "secret", "--placement", "memory", *peer]
            apis.append(stack.enter_context(serve(tmp_path / f"n{i}", *options))[0])
        for api in apis:
            wait_for("all are there", lambda: len(up(api)) == len(share), 10)
        shoal("load", model, api=apis[0])
        wait_for("it serves", lambda: len(holders(apis[0])) == len(share), 30)
        ranks = state(apis[0])["instances"][0]["ranks"]
        layers = {rank["node"]: rank["layers"][1] - rank["layers"][0] for rank in ranks}
        total = sum(layers.values())
        for i, parts in enumerate(share):
            assert abs(layers[f"n{i}"] - total * parts / sum(share)) <= 1.5, layers
        assert chat(apis[2])


def decode_seconds(api, n_max=40):
    """For so many tokens of one stream, without reading the prompt."""
    stream = Stream(api, n_max=n_max)
    stream.texts(1)
    begin = time.monotonic()
    stream.rest()
    return time.monotonic() - begin


@pytest.mark.alone
def test_slow_node_gets_less(tmp_path):
    """Two nodes with the same memory, one with a quarter of a processor: by speed it holds less than by memory. Neither can hold the
    model alone. How much sooner answers come is printed, not asked: other tests run beside this one."""
    model = need_model()
    (tmp_path / "secret").write_text("a secret of unlike nodes")
    options = ["--secret-file", tmp_path / "secret", "--memory", 200, "--slots", "1"]
    with slow_group(25) as enter, serve(tmp_path / "fast", *options, measured=True) as (fast, _):
        with serve(tmp_path / "slow", *options, "--peer", mesh_of(fast), enter=enter, measured=True):
            def speeds():
                return {n["name"]: n["gflops"] for n in state(fast)["nodes"] if n["gflops"] > 0}

            wait_for("both are measured", lambda: len(speeds()) == 2, 60)
            assert speeds()["slow"] < 0.85 * speeds()["fast"], speeds()  # far less where nothing else runs
            held, seconds = {}, {}
            for rule in ("memory", "speed"):
                shoal("load", model, "--placement", rule, api=fast)
                wait_for(f"it serves, placed by {rule}", lambda: holders(fast) == {"fast", "slow"}, 40)
                ranks = state(fast)["instances"][0]["ranks"]
                held[rule] = {rank["node"]: rank["weight_bytes"] for rank in ranks}
                seconds[rule] = min(decode_seconds(fast) for _ in range(3))
                shoal("unload", "smollm2", api=fast)
                wait_for("it is gone", lambda: not state(fast)["instances"], 20)
    print(f"bytes {held}, {seconds['memory'] / seconds['speed']:.2f} times as fast as placed by memory")
    assert held["speed"]["slow"] < held["memory"]["slow"]


def test_draft_model(tmp_path):
    """A small model that guesses ahead: one with other tokens is refused; one whose file is gone is done without."""
    model, other, small = need_model(), need_model("gemma3"), tmp_path / "small.gguf"
    shutil.copy(model, small)

    def weights():
        instances = state(a)["instances"]
        return instances[0]["ranks"][0]["weight_bytes"] if holders(a) else 0

    with serve(tmp_path / "a") as (a, _):
        assert "cannot guess for" in shoal("load", model, "--draft-model", other, api=a, fails=True)
        assert "/no/small.gguf" in shoal("load", model, "--draft-model", "/no/small.gguf", api=a, fails=True)
        shoal("load", model, api=a)
        wait_for("it serves", weights, 30)
        alone, before = weights(), chat(a)
        shoal("load", model, "--draft-model", small, api=a)
        wait_for("both are loaded", lambda: weights() == 2 * alone, 30)
        assert chat(a) == before
    small.unlink()
    with serve(tmp_path / "a") as (a, _):
        wait_for("it serves alone", lambda: weights() == alone, 30)
        assert chat(a) == before
    assert f"no draft model {small} here" in (tmp_path / "a" / "log").read_text()


def test_what_has_no_place_is_not_kept(tmp_path):
    """Two nodes that hold a model together, and one is killed: the other one's runner stays only as long as the model may come back."""
    model = need_model()
    (tmp_path / "secret").write_text("a secret of two nodes here")
    options = ["--secret-file", tmp_path / "secret", "--memory", 200, "--slots", "1"]
    with serve(tmp_path / "a", *options) as (a, _), serve(tmp_path / "b", *options, "--peer", mesh_of(a)) as (_, victim):
        wait_for("both are there", lambda: len(up(a)) == 2, 10)
        shoal("load", model, api=a)
        wait_for("it serves", lambda: len(holders(a)) == 2, 30)
        pid = next(rank["pid"] for rank in state(a)["instances"][0]["ranks"] if rank["node"] == "a")
        victim.kill()
        wait_for("the model has no place", lambda: state(a)["models"][0]["problem"], 15)
        wait_for("its memory is free", lambda: not alive(pid), 5)


def test_stopped_while_the_file_is_read(tmp_path):
    """A node that is told to stop, at once, when it has only begun to read its model's file."""
    model = need_model()
    for i in range(4):
        with serve(tmp_path / f"n{i}", "--model", model) as (_, process):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002 * i)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0

"""Downloads from a server that misbehaves: each must come to its right end."""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import threading
import time

import pytest
from file_server import gguf, sha256
from program import BUSY, CANCELLED, DAMAGED, IO, MODELS, NOT_FOUND, PROTOCOL, TIMED_OUT, UNAVAILABLE, Store

MIB = 1 << 20
DATA = gguf(5 * MIB, seed=1)
SMALL = ("--piece-kib", 512)  # so that a small file has many pieces


def check(store, data=DATA, name="m.gguf"):
    """The file is there, whole, and alone."""
    assert (store.models / name).read_bytes() == data
    assert store.leftovers() == []


@pytest.mark.parametrize("arguments", [(), SMALL, (*SMALL, "--connections", 1), (*SMALL, "--connections", 16)])
def test_plain(store, server, arguments):
    server.add("/m.gguf", DATA)
    model = store.pull(server.url + "/m.gguf", *arguments)["model"]
    check(store)
    assert model["sha256"] == sha256(DATA) and model["size_bytes"] == len(DATA) and model["source"].endswith("/m.gguf")
    assert server.bytes_sent("/m.gguf") == len(DATA)  # nothing twice
    connections = {r[1] for r in server.asked("/m.gguf")}
    assert len(connections) == (1 if not arguments else 11)


def test_what_is_here_is_not_fetched_again(store, server):
    server.add("/m.gguf", DATA)
    assert not store.pull(server.url + "/m.gguf")["was_there"]
    n = len(server.requests)
    assert store.pull(server.url + "/m.gguf")["was_there"]
    assert store.pull(server.url + "/m.gguf", "--offline")["was_there"]
    assert len(server.requests) == n


def test_damaged_on_the_disk(store, server):
    server.add("/m.gguf", DATA)
    store.pull(server.url + "/m.gguf")
    with open(store.models / "m.gguf", "r+b") as f:  # as a bad disk does it: nobody sees a change
        times = os.stat(f.fileno())
        f.seek(3 * MIB)
        f.write(b"damage")
        f.flush()
        os.utime(f.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.run("show", "m", "--check")[0] == DAMAGED
    assert not store.pull(server.url + "/m.gguf")["was_there"]
    check(store)
    os.truncate(store.models / "m.gguf", 2 * MIB)
    assert store.list()["models"][0]["is_damaged"]
    assert not store.pull(server.url + "/m.gguf")["was_there"]
    check(store)


def test_no_ranges(store, server):
    server.add("/m.gguf", DATA, ranges=False)
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)


def test_no_ranges_and_broken_off(store, server):
    f = server.add("/m.gguf", DATA, ranges=False, cuts=[0, 100, 3 * MIB, 1 * MIB])
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)
    assert len(server.asked("/m.gguf")) == 5 and not f.cuts


def test_no_length(store, server):
    server.add("/m.gguf", DATA, ranges=False, length=None)
    store.pull(server.url + "/m.gguf")
    check(store)


def test_no_length_and_broken_off(store, server):
    """Where nothing tells that the end is missing, the file itself does."""
    server.add("/m.gguf", DATA, ranges=False, length=None, cuts=[2 * MIB])
    assert "no whole GGUF file" in store.fail(DAMAGED, server.url + "/m.gguf")
    assert list(store.models.glob("m.gguf*")) == []


@pytest.mark.parametrize("seed", range(3))
def test_connections_that_break_anywhere(store, server, seed):
    server.random.seed(seed)
    server.add("/m.gguf", DATA, cut_share=0.4)
    store.pull(server.url + "/m.gguf", *SMALL, "--attempts", 50)
    check(store)


def test_given_up_and_continued(store, server):
    f = server.add("/m.gguf", DATA, cuts=[512 * 1024, 512 * 1024] + [0] * 1000)
    err = store.fail(UNAVAILABLE, server.url + "/m.gguf", *SMALL, "--attempts", 2, "--connections", 2)
    assert "given up after 2 attempts" in err
    assert store.leftovers() == ["m.gguf.part", "m.gguf.part.json"]
    assert store.list()["models"] == []
    f.cuts = []
    sent = server.bytes_sent("/m.gguf")
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)
    assert server.bytes_sent("/m.gguf") - sent < len(DATA)  # what was there was not fetched again


def interrupt(store, server, f, signal_number, after=0.35):
    f.slow = 0.05
    p = store.begin(server.url + "/m.gguf", *SMALL, "--connections", 2)
    time.sleep(after)
    p.send_signal(signal_number)
    _, err = p.communicate(timeout=20)
    f.slow = 0
    return p.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelled_and_continued(store, server, number):
    f = server.add("/m.gguf", DATA)
    code, err = interrupt(store, server, f, number, 0.8)
    assert code == CANCELLED and "cancelled" in err
    assert store.leftovers() == ["m.gguf.part", "m.gguf.part.json"]
    sent = server.bytes_sent("/m.gguf")
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)
    assert server.bytes_sent("/m.gguf") - sent < len(DATA)


def test_killed_again_and_again(store, server):
    """SIGKILL at any time; at the end every byte is right."""
    f = server.add("/m.gguf", DATA)
    chance = random.Random(7)
    for _ in range(8):
        interrupt(store, server, f, signal.SIGKILL, chance.uniform(0.01, 2.5) if chance.random() < 0.3 else chance.uniform(0.01, 0.5))
        if (store.models / "m.gguf").exists():
            break
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)


def test_another_file_when_it_goes_on(store, server):
    f = server.add("/m.gguf", DATA)
    interrupt(store, server, f, signal.SIGINT, 0.8)
    other = gguf(4 * MIB, seed=2)
    f.data, f.etag = other, '"2"'
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store, other)


def test_same_length_other_tag(store, server):
    f = server.add("/m.gguf", DATA)
    interrupt(store, server, f, signal.SIGINT, 0.8)
    f.data, f.etag = gguf(5 * MIB, seed=3), '"2"'
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store, f.data)


def test_nothing_to_tell_versions_by(store, server):
    f = server.add("/m.gguf", DATA, etag=None, modified=None)
    interrupt(store, server, f, signal.SIGINT, 0.8)
    f.data = gguf(5 * MIB, seed=3)
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store, f.data)


def test_file_that_changes_meanwhile(store, server):
    f = server.add("/m.gguf", DATA)
    other = gguf(5 * MIB, seed=4)

    def change(file):
        if len(server.asked("/m.gguf")) == 5:
            file.data, file.etag = other, '"2"'

    f.on_request = change
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store, other)


def test_file_that_always_changes(store, server):
    f = server.add("/m.gguf", DATA)

    def change(file):
        file.etag = f'"{len(server.requests)}"'

    f.on_request = change
    assert "again and again" in store.fail(PROTOCOL, server.url + "/m.gguf", *SMALL)


@pytest.mark.parametrize("status, code", [(404, NOT_FOUND), (403, UNAVAILABLE), (401, UNAVAILABLE), (410, NOT_FOUND), (418, UNAVAILABLE)])
def test_refusals(store, server, status, code):
    server.add("/m.gguf", DATA, statuses=[(status, {})] * 20)
    assert str(status) in store.fail(code, server.url + "/m.gguf")
    assert len(server.requests) == 1  # and asks no second time
    assert store.leftovers() == []


def test_passing_errors(store, server):
    server.add("/m.gguf", DATA, statuses=[(500, {}), (503, {}), (429, {"Retry-After": "2"})])
    begin = time.monotonic()
    store.pull(server.url + "/m.gguf")
    check(store)
    assert time.monotonic() - begin > 2  # it waited as long as it was told


def test_errors_that_do_not_pass(store, server):
    server.add("/m.gguf", DATA, statuses=[(500, {})] * 20)
    assert "given up after 2 attempts" in store.fail(UNAVAILABLE, server.url + "/m.gguf", "--attempts", 2)


def test_server_that_wants_us_to_wait_for_hours(store, server):
    server.add("/m.gguf", DATA, statuses=[(429, {"Retry-After": "9000"})] * 20)
    begin = time.monotonic()
    store.fail(BUSY, server.url + "/m.gguf")
    assert time.monotonic() - begin < 20


def test_redirects(store, server):
    server.add("/m.gguf", b"", redirect="/a")
    server.add("/a", b"", redirect=server.url + "/b?x=1")
    server.add("/b", DATA)
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)


def test_redirect_loop(store, server):
    server.add("/m.gguf", b"", redirect="/m.gguf")
    assert "redirects" in store.fail(PROTOCOL, server.url + "/m.gguf")


def test_redirect_to_something_else(store, server, tmp_path):
    (tmp_path / "secret.gguf").write_bytes(DATA)
    server.add("/m.gguf", b"", redirect=f"file://{tmp_path}/secret.gguf")
    assert store.run("pull", server.url + "/m.gguf", "--attempts", 1)[0] != 0
    assert not (store.models / "m.gguf").exists()


def test_length_that_is_too_short(store, server):
    """Ranges: the rest is asked for. One stream: the file is not whole."""
    server.add("/m.gguf", DATA, length=100_000)
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)
    server.add("/n.gguf", DATA, length=2 * MIB, ranges=False)
    assert "no whole GGUF file" in store.fail(DAMAGED, server.url + "/n.gguf")


def test_length_that_is_too_long(store, server):
    server.add("/m.gguf", DATA, length=len(DATA) + 100, ranges=False)
    store.fail(TIMED_OUT, server.url + "/m.gguf", "--attempts", 1, "--stall", 1)


def test_wrong_range(store, server):
    server.add("/m.gguf", DATA, shift=7)
    assert "another range" in store.fail(PROTOCOL, server.url + "/m.gguf", "--attempts", 2)


def test_silence(store, server):
    f = server.add("/m.gguf", DATA, hang_after=200_000)
    begin = time.monotonic()
    store.fail(TIMED_OUT, server.url + "/m.gguf", "--stall", 1, "--attempts", 1, "--connections", 1)
    assert time.monotonic() - begin < 15
    f.hang_after = None
    store.pull(server.url + "/m.gguf")
    check(store)


def test_a_page_instead_of_a_model(store, server):
    server.add("/m.gguf", b"<html>please log in</html>" * 100)
    assert "no whole GGUF file" in store.fail(DAMAGED, server.url + "/m.gguf")
    assert list(store.models.glob("m.gguf*")) == []


def test_nobody_there(store):
    store.fail(UNAVAILABLE, "http://127.0.0.1:1/m.gguf", "--attempts", 2)


def test_offline(store, server):
    server.add("/m.gguf", DATA)
    assert "offline" in store.fail(UNAVAILABLE, server.url + "/m.gguf", "--offline")
    assert "offline" in store.fail(UNAVAILABLE, server.url + "/m.gguf", SHOAL_OFFLINE="1")
    assert "offline" in store.fail(UNAVAILABLE, "llama3.2:3b", "--offline")
    assert server.requests == []


def test_proxy(store, server):
    """The whole address goes to the proxy, which is our server."""
    server.add("http://far.invalid/m.gguf", DATA)
    store.pull("http://far.invalid/m.gguf", http_proxy=server.url)
    check(store)


def test_limit_of_file_sizes(store, server):
    """A write that fails in the middle; what came before stays."""
    server.add("/m.gguf", DATA)
    p = subprocess.run(
        store.command("pull", server.url + "/m.gguf", *SMALL), capture_output=True, text=True, timeout=60, env=store.environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB)),
    )
    assert p.returncode == IO and "is kept" in p.stderr, p.stderr
    assert "m.gguf.part" in store.leftovers()
    store.pull(server.url + "/m.gguf", *SMALL)
    check(store)


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode != 0:
        pytest.skip("a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_that_is_too_small(server, tiny_disk):
    store = Store(tiny_disk, server)
    server.add("/m.gguf", DATA)
    err = store.fail(IO, server.url + "/m.gguf", *SMALL)
    assert "the disk is too full" in err and "MiB are free" in err
    assert server.bytes_sent("/m.gguf") < len(DATA)  # seen at once, not at the end


def test_disk_that_fills_up(server, tiny_disk):
    """The length is not known before: the disk is full when it is full."""
    store = Store(tiny_disk, server)
    server.add("/m.gguf", DATA, ranges=False, length=None)
    assert "the disk is full" in store.fail(IO, server.url + "/m.gguf")
    assert not (store.models / "m.gguf").exists()


def test_two_processes_fetch_the_same(store, server):
    f = server.add("/m.gguf", DATA, slow=0.02)
    both = [store.begin(server.url + "/m.gguf", *SMALL) for _ in range(2)]
    for p in both:
        _, err = p.communicate(timeout=60)
        assert p.returncode == 0, err
    check(store)
    assert server.bytes_sent("/m.gguf") == len(f.data)


def test_other_process_is_killed(store, server):
    f = server.add("/m.gguf", DATA, slow=0.05)
    first = store.begin(server.url + "/m.gguf", *SMALL)
    time.sleep(0.4)
    second = store.begin(server.url + "/m.gguf", *SMALL)
    time.sleep(0.4)
    first.kill()
    first.communicate()
    f.slow = 0
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    check(store)


def test_progress(store, server):
    server.add("/m.gguf", DATA, slow=0.03)
    p = store.begin(server.url + "/m.gguf", *SMALL, "--connections", 2)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    steps = [line for line in lines if line["phase"] == "fetching"]
    done = [s["downloaded_bytes"] for s in steps]
    assert done == sorted(done) and len(set(done)) > 2 and {s["total_bytes"] for s in steps[1:]} == {len(DATA)}
    assert any(s["bytes_per_s"] > 0 for s in steps) and any(s["eta_s"] is not None for s in steps)


def test_real_model(store, server):
    path = MODELS / "smollm2.gguf"
    if not path.exists():
        pytest.skip(f"there is no model {path}")
    data = pathlib.Path(path).read_bytes()
    server.add("/SmolLM2-135M-Instruct-Q4_1.gguf", data, cut_share=0.3)
    model = store.pull(server.url + "/SmolLM2-135M-Instruct-Q4_1.gguf", "--attempts", 30)["model"]
    assert model["sha256"] == sha256(data) and model["can_run"] and model["architecture"] == "llama"
    assert model["layers"] == 30 and model["quantization"] == "Q4_1" and 130e6 < model["parameters"] < 170e6


def test_many_at_once(store, server):
    """Six processes, six files, one folder and one index."""
    files = {f"/m{i}.gguf": gguf(MIB, seed=10 + i) for i in range(6)}
    for path, data in files.items():
        server.add(path, data)
    processes = [store.begin(server.url + path) for path in files]
    for p in processes:
        _, err = p.communicate(timeout=60)
        assert p.returncode == 0, err
    assert {m["name"]: m["sha256"] for m in store.list()["models"]} == {f"m{i}": sha256(files[f"/m{i}.gguf"]) for i in range(6)}

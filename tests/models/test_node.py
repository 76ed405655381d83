"""The model files of nodes: orders over the API, names that are loaded, and nodes that lack a file."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.parse

import pytest
from file_server import gguf, sha256
from program import INVALID, MODELS, NOT_FOUND, SHOAL, UNAVAILABLE, Store

MIB = 1 << 20


def wait_for(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Node:
    """`shoal serve` on free ports, over a store's folder."""

    def __init__(self, store, *options, hides=None):
        """hides: a folder that this node does not see, as if it were another computer."""
        self.store = store
        store.folder.mkdir(parents=True, exist_ok=True)
        self.log = open(store.folder / "log", "w")
        command = store.command("serve", "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-discovery", "--no-measure", *options)
        if hides:
            command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(hides), *command]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=store.environment)
        line = self.process.stdout.readline()
        assert "serves its API at" in line, (line, (store.folder / "log").read_text())
        self.api = line.split("API at ")[1].split(",")[0]
        self.mesh = line.split("mesh at ")[1].split(";")[0].strip()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def call(self, verb, body=None, method="POST"):
        address = urllib.parse.urlparse(self.api)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request(method, f"/v1/cluster/{verb}" if verb else "/v1/models", json.dumps(body or {}) if method == "POST" else None)
        answer = connection.getresponse()
        value = json.loads(answer.read())
        connection.close()
        return answer.status, value

    def shoal(self, verb, *arguments):
        done = subprocess.run(
            [SHOAL, verb, *arguments, "--api", self.api], capture_output=True, text=True, timeout=60, env=self.store.environment
        )
        return done.returncode, done.stdout, done.stderr

    def models(self):
        return self.call("", method="GET")[1]["data"]

    def instances(self):
        return self.call("state", method="GET")[1]["instances"]

    def stop(self, number=signal.SIGTERM, seconds=30):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        self.log.close()
        return code


@pytest.fixture
def node(store):
    n = Node(store)
    if n.call("models")[0] == 404:
        n.stop(signal.SIGKILL)
        pytest.skip("this API has no orders about models")
    yield n
    n.stop()


def test_pull_show_remove(node, store, server):
    data = gguf(5 * MIB, seed=1)
    server.add("/m.gguf", data)
    code, out, err = node.shoal("pull", server.url + "/m.gguf")
    assert code == 0 and "m.gguf" in out, err
    assert (store.models / "m.gguf").read_bytes() == data
    code, out, _ = node.shoal("ls", "--json")
    assert code == 0 and json.loads(out)["models"][0]["sha256"] == sha256(data) and len(json.loads(out)["cards"]) > 40
    code, out, _ = node.shoal("show", "m")
    assert code == 0 and sha256(data) in out
    assert node.shoal("rm", "m")[0] == 0 and not (store.models / "m.gguf").exists()
    assert node.shoal("rm", "m")[0] == NOT_FOUND and node.shoal("show", "m")[0] == NOT_FOUND


def test_ollamas_pull_and_delete(node, store, server):
    """Ollama's calls reach the same store."""
    data = gguf(5 * MIB, seed=2)
    server.add("/o.gguf", data)

    def call(method, path, body):
        address = urllib.parse.urlparse(node.api)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request(method, path, json.dumps(body))
        answer = connection.getresponse()
        lines = [json.loads(line) for line in answer.read().splitlines()]
        connection.close()
        return answer.status, lines

    status, lines = call("POST", "/api/pull", {"model": server.url + "/o.gguf"})
    assert status == 200 and lines[-1] == {"status": "success"}
    assert (store.models / "o.gguf").read_bytes() == data
    status, lines = call("POST", "/api/pull", {"model": server.url + "/none.gguf", "stream": False})
    assert status >= 400 and "404" in lines[0]["error"]
    assert call("DELETE", "/api/delete", {"model": "o"})[0] == 200 and not (store.models / "o.gguf").exists()
    assert call("DELETE", "/api/delete", {"model": "o"})[0] == 404


def test_two_pulls_of_one_file(node, server):
    f = server.add("/m.gguf", gguf(5 * MIB, seed=1), slow=0.01)
    ids = [node.call("pull", {"model": server.url + "/m.gguf"})[1]["id"] for _ in range(3)]
    pulls = wait_for("all are over", lambda: [p for p in node.call("pulls")[1]["pulls"] if p["phase"] == "done"][:3] * (
        sum(p["phase"] == "done" for p in node.call("pulls")[1]["pulls"]) == 3))
    assert {p["id"] for p in pulls} == set(ids) and server.bytes_sent("/m.gguf") == len(f.data)


def test_pull_that_fails(node, server):
    code, _, err = node.shoal("pull", server.url + "/none.gguf")
    assert code == UNAVAILABLE and "404" in err
    assert node.call("pull", {})[0] == 400 and node.call("remove", {"model": 3})[0] == 400


def test_stopped_in_the_middle(store, server):
    """The node ends in time, and the next one goes on."""
    f = server.add("/m.gguf", gguf(5 * MIB, seed=1), slow=0.1)
    n = Node(store)
    if n.call("pull", {"model": server.url + "/m.gguf"})[0] == 404:
        n.stop(signal.SIGKILL)
        pytest.skip("this API has no orders about models")
    wait_for("it has begun", lambda: (store.models / "m.gguf.part").exists())
    time.sleep(1)
    begin = time.monotonic()
    assert n.stop() == 0 and time.monotonic() - begin < 10
    assert store.leftovers() == ["m.gguf.part", "m.gguf.part.json"]
    f.slow, sent = 0, server.bytes_sent("/m.gguf")
    store.pull(server.url + "/m.gguf")
    assert server.bytes_sent("/m.gguf") - sent < len(f.data) and (store.models / "m.gguf").read_bytes() == f.data


CARD = {
    "name": "tiny:135m", "aliases": ["tiny"], "family": "smollm", "architecture": "llama", "layers": 30, "context": 2048,
    "capabilities": ["completion"],
}


def add_card(store, server):
    """A real model, published by our server under a name."""
    path = MODELS / "smollm2.gguf"
    if not path.exists():
        pytest.skip(f"there is no model {path}")
    if "/tiny-Q4_1.gguf" not in server.files:
        server.add("/tiny-Q4_1.gguf", path.read_bytes())
    card = CARD | {"quantizations": [{"name": "Q4_1", "url": server.url + "/tiny-Q4_1.gguf"}]}
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / "cards.json").write_text(json.dumps({"models": [card]}))


def test_load_by_name(store, server):
    add_card(store, server)
    n = Node(store, "--ctx", "512", "--slots", "2")
    try:
        code, _, err = n.shoal("load", "tiny:135m")
        assert code == NOT_FOUND and "shoal pull tiny:135m" in err
        store.pull("tiny")
        code, _, err = n.shoal("load", "tiny:135m")
        assert code == 0, err
        wait_for("it serves", lambda: n.instances() and n.instances()[0]["status"] == "serving")
        assert n.instances()[0]["model"] == "tiny:135m"
        code, out, _ = n.shoal("ps")
        assert code == 0 and "tiny:135m" in out and "serving" in out
        if n.call("models")[0] == 200:  # what runs is not removed
            for name in ("tiny", "tiny:135m", "tiny-Q4_1"):
                code, _, err = n.shoal("rm", name)
                assert code == INVALID and "unload" in err
        assert n.shoal("unload", "tiny:135m")[0] == 0
    finally:
        n.stop()


def test_serve_by_name(store, server):
    add_card(store, server)
    store.pull("tiny")
    n = Node(store, "--model", "tiny", "--ctx", "512", "--slots", "2")
    try:
        wait_for("it serves", lambda: n.instances() and n.instances()[0]["status"] == "serving")
    finally:
        assert n.stop() == 0


def test_other_node_fetches_what_it_lacks(tmp_path, server):
    """A rank is placed on a node without the file: it fetches it by the catalogue, and can take part from then on."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("hiding a folder from a process needs root")
    a, b = Store(tmp_path / "a", server), Store(tmp_path / "b", server)
    for store in (a, b):
        add_card(store, server)
    a.pull("tiny")
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    options = ("--secret-file", secret, "--ctx", "512", "--slots", "2", "--placement", "memory")
    first = Node(a, *options, "--name", "a")
    second = Node(b, *options, "--name", "b", "--peer", first.mesh, hides=a.models)
    try:
        wait_for("they are linked", lambda: len([x for x in first.call("state", method="GET")[1]["nodes"] if x["status"] == "up"]) == 2)
        assert first.shoal("load", "tiny:135m", "--nodes", "2")[0] == 0
        wait_for("the other one has it", lambda: (b.models / "tiny-Q4_1.gguf").exists(), 60)
        assert sha256((b.models / "tiny-Q4_1.gguf").read_bytes()) == sha256(server.files["/tiny-Q4_1.gguf"].data)
        # It answers requests from its own copy now.
        wait_for("the other one answers", lambda: second.models() and second.models()[0]["ready"])
    finally:
        second.stop()
        first.stop(signal.SIGINT)
    assert "the file is being fetched" in (b.folder / "log").read_text()

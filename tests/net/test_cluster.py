"""Real nodes that serve a model together: same answers for every split and from every node, and what happens when a client, a
runner or a node goes away."""

import os
import random
import re
import signal
import socket
import subprocess

import pytest

from cluster import PROMPT, SHOAL, Cluster, Stream, chat, get, need_model, run_once, state, wait_for
from processes import alive


@pytest.fixture(scope="module")
def reference():
    need_model()
    return run_once()


def same_beginning(text, reference, share):
    """Splits across heads sum in another order, so that a near tie may go the other way; the beginning must agree."""
    n = int(len(reference) * share)
    return text[:n] == reference[:n]


@pytest.mark.parametrize(
    ("n", "options", "n_stages", "share"),
    [
        (1, [], 1, 1.0),
        (2, [], 2, 1.0),
        (3, ["--split", "pipeline"], 3, 1.0),
        (2, ["--split", "tensor"], 1, 0.3),
        (4, ["--split", "2x2"], 2, 0.3),
    ],
    ids=["one", "pipeline-2", "pipeline-3", "tensor-2", "hybrid-2x2"],
)
def test_every_node_gives_the_same_answer(n, options, n_stages, share, reference):
    cluster = Cluster(n, *options)
    try:
        instance = state(cluster.apis[0])["instances"][0]
        assert len(instance["ranks"]) == n
        assert len({rank["node"] for rank in instance["ranks"]}) == n
        stages = sorted({(rank["stage"], *rank["layers"]) for rank in instance["ranks"]})
        assert len(stages) == n_stages
        assert stages[0][1] == 0 and all(a[2] == b[1] for a, b in zip(stages, stages[1:]))
        answers = [chat(api) for api in cluster.apis]
        assert all(answer == answers[0] for answer in answers)
        assert same_beginning(answers[0], reference, share), (answers[0], reference)
        for api in cluster.apis:
            assert [model["id"] for model in get(api, "/v1/models")[1]["data"]] == ["smollm2"]
            seen = state(api)
            assert len(seen["nodes"]) == n
            assert sum(node["is_self"] for node in seen["nodes"]) == 1
            assert seen["instances"][0]["status"] == "serving"
    finally:
        pids = cluster.all_pids()
        assert cluster.stop() == 0
    assert not [pid for pid in pids if alive(pid)]


def test_more_ranks_than_nodes(reference):
    cluster = Cluster(2, "--split", "2x2")
    try:
        ranks = state(cluster.apis[0])["instances"][0]["ranks"]
        assert [rank["node"] for rank in ranks] == ["node-1", "node-2", "node-1", "node-2"]
        assert same_beginning(chat(cluster.apis[1]), reference, 0.3)
    finally:
        cluster.stop()


def test_client_that_leaves_ends_the_work(pair):
    for api in pair.apis:
        stream = Stream(api)
        stream.texts(3)
        assert state(pair.apis[0])["requests"]["running"] == 1
        cancelled = state(pair.apis[0])["requests"]["cancelled"]
        stream.close()
        wait_for("no request runs", lambda: state(pair.apis[0])["requests"]["running"] == 0, 10)
        assert state(pair.apis[0])["requests"]["cancelled"] == cancelled + 1
        assert chat(api)


def send_bytes(port, data):
    """Sends bytes to a port and reads until the other side closes, or says nothing for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        try:
            connection.sendall(data)
            while connection.recv(4096):
                pass
        except (TimeoutError, ConnectionError):
            pass


def test_malformed_bytes_are_refused(pair):
    me = next(node for node in state(pair.apis[0])["nodes"] if node["is_self"])
    mesh_port, api_port = (int(me[key].rsplit(":", 1)[1]) for key in ("mesh", "api"))
    refused = state(pair.apis[0])["mesh_errors"]["refused"]
    source = random.Random(1)
    samples = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        b"\x16\x03\x01\x7f\xff" + b"\x01" * 1000,  # a TLS record that claims 32 KiB
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",  # a ClientHello that is cut off
        *(source.randbytes(source.randrange(9, 600)) for _ in range(20)),
    ]
    for sample in samples:
        send_bytes(mesh_port, sample)
    for sample in samples:
        send_bytes(api_port, sample)
    assert all(alive(pid) for pid in pair.pids)
    assert state(pair.apis[0])["mesh_errors"]["refused"] >= refused + 15
    assert state(pair.apis[0])["instances"][0]["status"] == "serving"
    assert chat(pair.apis[0])


def test_children_die_with_their_parent():
    cluster = Cluster(2)
    pids = cluster.all_pids()
    cluster.stop(signal.SIGKILL)
    wait_for("all processes are gone", lambda: not [pid for pid in pids if alive(pid)], 20)


def test_stop_lets_a_request_finish():
    cluster = Cluster(2)
    stream = Stream(cluster.apis[0], n_max=20)
    stream.texts(2)
    cluster.process.send_signal(signal.SIGTERM)
    _, reason, _ = stream.rest()
    assert reason in ("length", "stop")
    assert cluster.stop() == 0


def test_nodes_without_a_model():
    need_model()
    cluster = Cluster(2, model=False)
    try:
        for api in cluster.apis:
            assert get(api, "/v1/models")[1]["data"] == []
            assert len(state(api)["nodes"]) == 2
        with pytest.raises(RuntimeError) as refused:
            chat(cluster.apis[0], prompt=PROMPT)
        assert refused.value.args[0] == 404
    finally:
        assert cluster.stop() == 0


def test_keys(tmp_path):
    """Our own commands send the key that the environment has."""
    need_model()
    key, file = "sk-" + "0123456789abcdef" * 4, tmp_path / "keys"
    file.write_text(f"{key} owner admin - -\n")
    file.chmod(0o600)
    node = subprocess.Popen([SHOAL, "serve", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-discovery",
                             "--no-measure", "--api-keys", file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        api = re.search(r"http://[\d.:]+", node.stdout.readline()).group()
        for known, code in ((None, 69), ("sk-" + "f" * 64, 69), (key, 0)):
            environment = {k: v for k, v in os.environ.items() if k != "SHOAL_API_KEY"} | ({"SHOAL_API_KEY": known} if known else {})
            status = subprocess.run([SHOAL, "status", "--api", api], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)
            assert status.returncode == code, known
        assert get(api, "/health")[0] in (200, 503) and get(api, "/v1/cluster/state")[0] == 401
    finally:
        node.terminate()
        assert node.wait(20) == 0
        node.stdout.close()

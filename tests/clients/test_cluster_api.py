"""Orders to the cluster, POST /v1/cluster/<verb>, over a scripted backend (fixture/scripted_orders.h)."""

import json
import os
import socket
import subprocess
import time

import pytest

from fixture_server import ROOT, Server, find_program

SHOAL = os.path.join(os.environ.get("SHOAL_BUILD", ROOT / "build" / "dev"), "shoal")
VERBS = ["plan", "load", "unload", "drain", "undrain", "invite", "join", "requests", "approve", "deny", "revoke"]


@pytest.fixture(scope="module")
def server():
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    s = Server(program)
    yield s
    assert s.stop() == 0


def order(server, verb, body=None, **headers):
    status, answer_headers, text = server.request("POST", f"/v1/cluster/{verb}", body if body is not None else {}, headers)
    return status, json.loads(text), answer_headers


def own_address():
    """An address of this machine that is not a loopback one, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # nothing is sent
            return None if s.getsockname()[0].startswith("127.") else s.getsockname()[0]
        except OSError:
            return None


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reaches_the_backend(server, verb):
    body = {"model": "tiny", "n_ctx": 4096, "text": "grün 🌊"}
    status, answer, headers = order(server, verb, body)
    assert status == 200 and answer == {"verb": verb, "body": body}
    assert headers["content-type"] == "application/json" and headers["x-request-id"]


def test_empty_body_is_an_empty_object(server):
    status, _, text = server.request("POST", "/v1/cluster/unload", b"")
    assert status == 200 and json.loads(text)["body"] == {}


def test_answer_that_takes_its_time(server):
    begin = time.monotonic()
    assert order(server, "load", {"script": "later 200"})[0] == 200
    assert time.monotonic() - begin >= 0.2


def test_errors_of_the_backend(server):
    status, answer, _ = order(server, "drain", {"script": "fail"})
    assert status == 404 and answer["error"]["message"] == "there is no node 'x'"
    status, answer, headers = order(server, "drain", {"script": "busy"})
    assert status == 429 and answer["error"]["type"] == "rate_limit_error" and headers["retry-after"] == "1"


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b'{"a":1} x', b"\xff", b"null", b'"x"'])
def test_malformed_bodies(server, body):
    status, _, text = server.request("POST", "/v1/cluster/plan", body)
    assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error"


def test_size_limit(server):
    fits = b'{"a":"' + b"x" * (65536 - 8) + b'"}'
    assert server.request("POST", "/v1/cluster/plan", fits)[0] == 200
    status, _, text = server.request("POST", "/v1/cluster/plan", fits + b" ")
    assert status == 413 and "65536" in json.loads(text)["error"]["message"]


def test_unknown_verbs_and_methods(server):
    for path in ["/v1/cluster/explode", "/v1/cluster/", "/v1/cluster/plan/x", "/v1/cluster"]:
        assert server.request("POST", path, {})[0] == 404
    status, headers, _ = server.request("GET", "/v1/cluster/plan")
    assert status == 405 and headers["allow"] == "POST, OPTIONS"
    assert server.request("POST", "/v1/cluster/state", {})[0] == 405


def test_web_pages(server):
    assert order(server, "plan", Origin="https://evil.example")[0] == 403
    assert order(server, "plan", Origin="null")[0] == 403
    status, _, headers = order(server, "plan", Origin="http://localhost:3000")
    assert status == 200 and headers["access-control-allow-origin"] == "http://localhost:3000"
    assert order(server, "plan", Origin="https://allowed.example")[0] == 200


def test_client_that_leaves(server):
    given, answered = (server.state()[k] for k in ("n_orders_given", "n_orders_answered"))
    body = b'{"script":"later 150"}'
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /v1/cluster/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_for_state("n_orders_given", given + 1, 5)
    server.wait_for_state("n_orders_answered", answered + 1, 5)
    assert order(server, "plan")[0] == 200


def test_only_from_this_machine():
    program, address = find_program(), own_address()
    if program is None or address is None:
        pytest.skip("needs the fixture and an address that is not a loopback one")
    server = Server(program, "0", "0.0.0.0")
    try:
        assert order(server, "plan")[0] == 200
        # a name of the web that was bent to point here
        status, answer, _ = order(server, "plan", Host="evil.example", Origin="http://evil.example")
        assert status == 403 and answer["error"]["code"] == "not_from_this_machine"
        server.url = f"http://{address}:{server.port}"
        status, answer, _ = order(server, "revoke", {"node": "a"})
        assert status == 403 and answer["error"]["type"] == "permission_error"
        assert server.request("GET", "/v1/cluster/state")[0] == 200
    finally:
        server.url = f"http://127.0.0.1:{server.port}"
        assert server.stop() == 0


def test_orders_that_are_open_when_the_server_stops():
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    server = Server(program)
    body = b'{"script":"never"}'
    sockets = []
    for _ in range(65):  # one more than can be carried out at a time
        s = socket.create_connection(("127.0.0.1", server.port))
        s.settimeout(10)
        s.sendall(b"POST /v1/cluster/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sockets.append(s)
    server.wait_for_state("n_orders_given", 64, 5)
    assert order(server, "plan")[0] == 429
    server.process.terminate()
    heads = [s.recv(4096)[:12] for s in sockets]
    assert sorted(heads) == [b"HTTP/1.1 429"] + 64 * [b"HTTP/1.1 503"]
    for s in sockets:
        s.close()
    assert server.process.wait(timeout=20) == 0


# the same orders as verbs of the program


def shoal(server, *arguments):
    """Exit code, standard output, standard error."""
    if not os.path.exists(SHOAL):
        pytest.skip("shoal is not built")
    done = subprocess.run([SHOAL, *arguments, "--api", server.url], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout, done.stderr


def test_verbs_send_what_they_are_given(server, tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    places = ["--ctx", "4096", "--slots", "2", "--split", "2x1", "--placement", "memory", "--nodes", "3"]
    body = {"n_ctx": 4096, "n_slots": 2, "split": "2x1", "placement": "memory", "n_nodes_min": 3}
    cases = [
        (["load", str(model), *places], {"model": str(model), **body}),
        (["plan", os.path.relpath(model), *places], {"model": str(model), **body}),
        (["unload", "smollm2"], {"model": "smollm2"}),
        (["drain", "node-b"], {"node": "node-b"}),
        (["undrain", "node-b"], {"node": "node-b"}),
        (["revoke", 'a "b"'], {"node": 'a "b"'}),
        (["invite", "--valid", "60"], {"valid_s": 60}),
        (["join", "shoal-invite-1"], {"invite": "shoal-invite-1"}),
        (["approve", "ABC-123"], {"code": "ABC-123"}),
        (["deny", "ABC-123"], {"code": "ABC-123"}),
    ]
    for arguments, sent in cases:
        code, out, _ = shoal(server, *arguments, "--json")
        assert code == 0 and json.loads(out) == {"verb": arguments[0], "body": sent}
        assert shoal(server, *arguments)[0] == 0


def test_verbs_speak_to_people(server):
    code, out, _ = shoal(server, "plan", "example")
    lines = out.splitlines()
    assert code == 0 and "* pipeline        40.5     300.0  a,b: reading weights takes 20 ms of 25 ms a token" in lines
    assert any("rank 1  b" in line and "layers 7-15, 2.00 GiB" in line for line in lines)
    assert any(line.startswith("  no") and "3.20 GiB short on node b" in line for line in lines)
    code, out, err = shoal(server, "invite", "--valid", "77")
    assert code == 0 and out == "shoal-invite-1\n" and "shoal join 'shoal-invite-1'" in err
    code, out, _ = shoal(server, "requests")
    assert code == 0 and "ABC-123" in out and "laptop" in out and "5 s ago" in out


def test_verbs_that_fail(server):
    for arguments in (["drain"], ["drain", "a", "b"], ["invite", "x"], ["invite", "--valid", "0"], ["unload", "m", "--ctx", "5"]):
        code, out, err = shoal(server, *arguments)
        assert code == 64 and out == "" and err
    server_url, server.url = server.url, "http://127.0.0.1:1"
    try:
        code, _, err = shoal(server, "drain", "a")
        assert code == 69 and "127.0.0.1:1" in err
    finally:
        server.url = server_url

"""API keys: who may do what and how much of it, and what the log says of each request."""

import hashlib
import json
import os
import re
import socket
import subprocess
import time

import pytest

openai = pytest.importorskip("openai")

from fixture_server import Server, chat, find_program

KEYS = {
    name: f"sk-{name}-0123456789abcdef"
    for name in ["chat", "look", "both", "owner", "slow", "thirsty"]
}
LINES = """# key  name  scopes  requests/min  tokens/min
{chat} chat inference
{look} look read - -
{both} both read,inference 0 0
{owner} owner admin
{slow} slow inference 2
{thirsty} thirsty inference - 60
"""


def hash_of(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def program():
    found = find_program()
    if found is None:
        pytest.skip("shoal-api-fixture is not built")
    return found


def write_keys(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "log"


@pytest.fixture(scope="module")
def server(log):
    keys = {name: hash_of(key) for name, key in KEYS.items()}
    keys["both"] = KEYS["both"]  # a key may stand there itself
    path = write_keys(log.parent / "keys", LINES.format(**keys))
    arguments = ["0", "127.0.0.1", path]
    with open(log, "wb") as stderr:
        s = Server(program(), *arguments, stderr=stderr)
    yield s
    assert s.stop() == 0


def ask(server, name, method="GET", path="/v1/models", body=None, **headers):
    if name is not None:
        headers["Authorization"] = f"Bearer {KEYS[name]}"
    status, fields, text = server.request(method, path, body, headers)
    return status, fields, json.loads(text) if text.startswith("{") else text


def say(server, name, text="say hello", **more):
    return ask(server, name, "POST", "/v1/chat/completions", chat(text, **more))


def test_without_key(server):
    assert ask(server, None, path="/health")[0] == 200
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/cluster/state"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/cluster/plan"),
        ("GET", "/nothing"),
        ("DELETE", "/health"),
        ("GET", "/api/tags"),
    ]:
        status, fields, body = ask(server, None, method, path, {} if method == "POST" else None)
        assert status == 401, path
        assert fields["www-authenticate"] == "Bearer"
        assert body["error"]
    assert ask(server, None, "OPTIONS", "/v1/models")[0] == 204


def test_unknown_keys(server):
    for headers in [
        {"Authorization": "Bearer sk-nobody-0123456789abcdef"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic " + KEYS["chat"]},
        {"Authorization": KEYS["chat"]},
        {"Authorization": "Bearer " + hash_of(KEYS["chat"])},
        {"Authorization": "Bearer " + KEYS["chat"] + "x"},
        {"x-api-key": "x" * 5000},
    ]:
        status, _, text = server.request("GET", "/v1/models", headers=headers)
        assert status == 401, headers
        assert json.loads(text)["error"]["code"] == "invalid_api_key"


def test_shapes_of_refusals(server):
    _, _, body = say(server, None)
    assert body["error"]["code"] == "invalid_api_key"
    _, _, body = ask(server, None, "POST", "/v1/messages", {})
    assert body["type"] == "error" and body["error"]["type"] == "authentication_error"
    _, _, body = ask(server, None, "POST", "/api/chat", {})
    assert isinstance(body["error"], str)


def test_fields(server):
    for headers in [
        {"Authorization": "Bearer " + KEYS["chat"]},
        {"Authorization": "bearer  " + KEYS["chat"]},
        {"x-api-key": KEYS["chat"]},
        {"Authorization": "Bearer none", "x-api-key": KEYS["chat"]},
    ]:
        assert server.request("GET", "/v1/models", headers=headers)[0] == 200


def test_scopes(server):
    order = ("POST", "/v1/cluster/plan", {"model": "tiny"})
    state = ("GET", "/v1/cluster/state")
    for name, inference, read, admin in [
        ("chat", True, False, False),
        ("look", False, True, False),
        ("both", True, True, False),
        ("owner", True, True, True),
    ]:
        assert say(server, name)[0] == (200 if inference else 403)
        assert ask(server, name, *state)[0] == (200 if read else 403)
        assert ask(server, name, *order)[0] == (200 if admin else 403)
        assert ask(server, name)[0] == 200
        assert ask(server, name, path="/nothing")[0] == 404
    body = say(server, "look")[2]["error"]
    assert body["type"] == "permission_error" and "inference" in body["message"]


def test_sdk(server):
    def client(key):
        return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)

    assert client(KEYS["chat"]).chat.completions.create(**chat("say hi"))
    with pytest.raises(openai.AuthenticationError):
        client("none").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client(KEYS["look"]).chat.completions.create(**chat("say hi"))


def test_requests_per_minute(server):
    assert [say(server, "slow")[0] for _ in range(3)] == [200, 200, 429]
    status, fields, body = say(server, "slow")
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert 25 <= int(fields["retry-after"]) <= 30  # two a minute: one each 30 s
    assert ask(server, "slow")[0] == 429  # every request counts
    assert say(server, "chat")[0] == 200


def test_tokens_per_minute(server):
    """Charged when they are known: the first call may take more than there is."""
    status, _, body = say(server, "thirsty", "repeat 80 x")
    assert status == 200
    over = body["usage"]["total_tokens"] - 60
    status, fields, body = say(server, "thirsty")
    assert status == 429
    assert over - 3 <= int(fields["retry-after"]) <= over + 2  # one token comes back each second
    assert ask(server, "thirsty")[0] == 200  # looking costs no tokens


def test_log_of_a_client_that_left(server, log):
    body = json.dumps(chat("drip 5", stream=True)).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-request-id: left\r\n"
            + f"x-api-key: {KEYS['chat']}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        received = b""
        while b'"content":"x' not in received:
            received += sock.recv(65536)
    deadline = time.monotonic() + 5
    while "request=left" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    line = re.search(r".*request=left .*", log.read_text()).group()
    assert "-> gone" in line and "key=chat" in line
    assert int(re.search(r"tokens_out=(\d+)", line).group(1)) > 0


def test_log(server, log):
    body = chat("say secret words")
    headers = {"Authorization": "Bearer " + KEYS["both"], "x-request-id": "seen"}
    server.request("POST", "/v1/chat/completions", body, headers)
    server.request("GET", "/v1/mo%20dels%22x=1", headers={**headers, "x-request-id": "odd"})
    server.request("GET", "/v1/models", headers={"x-request-id": "nokey"})
    text = log.read_text()
    lines = {i: re.findall(rf".*request={i} .*", text) for i in ["seen", "odd", "nokey"]}
    assert all(len(found) == 1 for found in lines.values()), lines
    assert re.search(
        r"info api request=seen POST /v1/chat/completions -> 200 in [\d.]+ ms, \d+ bytes "
        r"key=both model=tiny tokens_in=\d+ tokens_out=13$",
        lines["seen"][0],
    )
    assert "GET /v1/mo_dels_x=1 -> 404" in lines["odd"][0]
    assert "GET /v1/models -> 401" in lines["nokey"][0] and "key=" not in lines["nokey"][0]
    assert "secret words" not in text
    for key in KEYS.values():
        assert key not in text and hash_of(key)[7:] not in text


def test_orders_from_other_machines(tmp_path):
    """With a key that may give orders it does not matter where they come from, or to which name."""
    keys = write_keys(tmp_path / "keys", f"{hash_of(KEYS['owner'])} owner admin\n")
    for arguments, status in [(["0", "0.0.0.0", keys], 200), (["0", "0.0.0.0"], 403)]:
        s = Server(program(), *arguments)
        headers = {"Authorization": "Bearer " + KEYS["owner"], "Host": "shoal.example"}
        assert s.request("POST", "/v1/cluster/plan", {"model": "x"}, headers)[0] == status
        assert s.stop() == 0


@pytest.mark.parametrize(
    "text, mode, words",
    [
        ("{hash} a admin\n", 0o640, "chmod 600"),
        ("# nobody\n", 0o600, "no API key"),
        ("short a admin\n", 0o600, "line 1.*16 to 256"),
        ("{hash}\n", 0o600, "needs key, name and scopes"),
        ("{hash} a all\n", 0o600, "scopes are"),
        ("{hash} a admin,\n", 0o600, "scopes are"),
        ("{hash} a admin many\n", 0o600, "whole numbers"),
        ("{hash} a admin\n{hash} b admin\n", 0o600, "line 2.*twice"),
        ("{hash} a/b admin\n", 0o600, "letters"),
    ],
)
def test_bad_files(tmp_path, text, mode, words):
    hashed = hash_of(KEYS["owner"])
    path = write_keys(tmp_path / "keys", text.format(hash=hashed), mode)
    run = subprocess.run(
        [program(), "0", "127.0.0.1", path], capture_output=True, text=True, timeout=20
    )
    assert run.returncode == 1 and re.search(words, run.stderr), run.stderr
    assert hashed[7:] not in run.stderr
    missing = subprocess.run(
        [program(), "0", "127.0.0.1", os.path.join(tmp_path, "none")],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert missing.returncode == 1 and "cannot read the API keys" in missing.stderr

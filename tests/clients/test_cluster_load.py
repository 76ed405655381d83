"""What a node says of an order to load a model with values that cannot be: POST /v1/cluster/load and /plan to a real node."""

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

from fixture_server import ROOT

SHOAL = os.path.join(os.environ.get("SHOAL_BUILD", ROOT / "build" / "dev"), "shoal")
U32_MAX = 2**32 - 1


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The API of a node that is alone and has no model."""
    if not os.path.exists(SHOAL):
        pytest.skip("shoal is not built")
    folder = tmp_path_factory.mktemp("node")
    with open(folder / "log", "w") as log:
        node = subprocess.Popen([SHOAL, "serve", "--name", "alone", "--data-dir", folder, "--listen", "127.0.0.1:0",
                                 "--mesh", "127.0.0.1:0", "--no-discovery", "--no-measure"], stdout=subprocess.PIPE, stderr=log, text=True)
    line = node.stdout.readline()
    found = re.search(r"http://[^\s,]+", line)
    try:
        assert found, line + (folder / "log").read_text()
        yield found[0]
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=20) == 0
        node.stdout.close()


def order(api, verb, **body):
    """Status and message."""
    request = urllib.request.Request(f"{api}/v1/cluster/{verb}", data=json.dumps({"model": "/nowhere/m.gguf", **body}).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as answer:
        return answer.code, json.loads(answer.read())["error"]["message"]


WORDS = {"kv_type": "f16 or q8", "wire": "f32, f16 or q8", "transport": "tcp or ucx"}
NO_WORDS = ["", "f64", "F16", "q8 ", "q8\0", "x" * 5000, 8, -1, 1.5, True, [], ["q8"], {}]
GREATEST = {"n_kv_tokens": U32_MAX, "n_chunk": 2048, "n_draft": 32}
NO_NUMBERS = [-1, 1.5, 1e3, "8", "", True, [], {}, 2**63 - 1]


@pytest.mark.parametrize("value", NO_WORDS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("field", WORDS)
def test_words_that_are_none_of_the_choices(api, field, value):
    for verb in ("load", "plan"):
        assert order(api, verb, **{field: value}) == (400, f"'{field}' must be {WORDS[field]}")


@pytest.mark.parametrize("value", [*NO_NUMBERS, "one too many"], ids=repr)
@pytest.mark.parametrize("field", GREATEST)
def test_numbers_out_of_range(api, field, value):
    value = GREATEST[field] + 1 if value == "one too many" else value
    for verb in ("load", "plan"):
        assert order(api, verb, **{field: value}) == (400, f"'{field}' must be a whole number from 0 to {GREATEST[field]}")


def test_numbers_that_are_too_long_for_json(api):
    status, message = order(api, "load", n_chunk=2**64)
    assert status == 400 and message


@pytest.mark.parametrize("body", [{}, dict.fromkeys([*WORDS, *GREATEST]), dict(GREATEST), dict.fromkeys(GREATEST, 0),
                                  {"kv_type": "q8", "wire": "f16", "transport": "tcp"}], ids=["none", "null", "greatest", "zero", "words"])
def test_values_that_can_be(api, body):
    """They get as far as the file, which is not there."""
    for verb in ("load", "plan"):
        status, message = order(api, verb, **body)
        assert status == 404 and "/nowhere/m.gguf" in message

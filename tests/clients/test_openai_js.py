"""The API through OpenAI's client for JavaScript (js/openai_client.mjs)."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from fixture_server import ROOT, Server, find_program

HERE = pathlib.Path(__file__).resolve().parent
NODE_MIN = 20  # of the client
# Where scripts/test.sh puts what js/package-lock.json names.
MODULES = pathlib.Path(os.environ.get("SHOAL_TEST_JS", ROOT / "build" / "js"))


@pytest.fixture(scope="module")
def result():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    version = subprocess.run([node, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MIN:
        pytest.skip(f"the client needs node {NODE_MIN}, this is {version}")
    if not (MODULES / "node_modules" / "openai").is_dir():
        pytest.skip(f"the client is not installed below {MODULES}")
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    server = Server(program)
    try:
        run = subprocess.run(
            [node, HERE / "js" / "openai_client.mjs", MODULES, server.url + "/v1"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        status = server.stop()
    assert run.returncode == 0, run.stderr
    assert status == 0
    return json.loads(run.stdout)


def test_chat(result):
    assert result["chat"] == {"text": "hello", "tokens": 6}
    assert result["stream"] == {"text": "hello there"}
    assert result["completion"] == {"text": "hello"}


def test_tools(result):
    tools = result["tools"]
    assert tools["finish"] == "tool_calls" and tools["text"].strip() == "On it."
    assert tools["calls"] == [["weather", {"city": "Rome"}]] * 2
    assert len(set(tools["ids"])) == 2


def test_responses(result):
    assert result["response"] == {"text": "hello", "status": "completed", "tokens": 6}
    streamed = result["responseStream"]
    assert streamed["output"] == ["reasoning", "message", "function_call"]
    assert streamed["text"].strip() == "On it."
    assert streamed["types"][0] == "response.created"
    assert streamed["types"][-1] == "response.completed"
    assert "response.reasoning_text.delta" in streamed["types"]
    assert "response.function_call_arguments.delta" in streamed["types"]


def test_errors(result):
    assert result["failure"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}

"""A real cluster on this computer for the tests of this folder: `shoal local` and a plain HTTP client."""

import http.client
import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHOAL = ROOT / os.environ.get("SHOAL_BUILD", "build/dev") / "shoal"
MODELS = ROOT / os.environ.get("SHOAL_TEST_MODELS", "build/models")
TIMEOUT_S = 120
PROMPT = "Tell me about the sea."


def need_model(name="smollm2"):
    path = MODELS / f"{name}.gguf"
    if not SHOAL.exists():
        pytest.skip(f"{SHOAL} is not built")
    if not path.exists():
        pytest.skip(f"there is no model {path}")
    return path


def wait_for(what, condition, seconds=TIMEOUT_S):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def connect(api, timeout=TIMEOUT_S):
    address = urllib.parse.urlparse(api)
    return http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)


def get(api, path, timeout=TIMEOUT_S):
    connection = connect(api, timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def state(api):
    status, value = get(api, "/v1/cluster/state")
    assert status == 200
    return value


def chat_body(model, prompt=PROMPT, n_max=16, **more):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": n_max, "temperature": 0}
    return json.dumps(body | more)


def chat(api, model="smollm2", prompt=PROMPT, n_max=16):
    """The text of a whole answer; (status, error) is the exception's argument otherwise."""
    connection = connect(api)
    try:
        connection.request("POST", "/v1/chat/completions", chat_body(model, prompt, n_max), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        value = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(answer.status, value)
    return value["choices"][0]["message"]["content"]


class Stream:
    """A streamed answer: iterates over the JSON events; close() is a client that leaves."""

    def __init__(self, api, model="smollm2", prompt=PROMPT, n_max=400, **more):
        self.connection = connect(api)
        body = chat_body(model, prompt, n_max, stream=True, stream_options={"include_usage": True}, **more)
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()

    def __iter__(self):
        for line in self.answer:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])

    def texts(self, count):
        """Waits for so many pieces of text."""
        pieces = []
        for event in self:
            assert "error" not in event, event
            text = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if text:
                pieces.append(text)
            if len(pieces) == count:
                break
        return pieces

    def rest(self):
        """(text of what still comes, finish reason, usage); an error event is an AssertionError."""
        pieces, reason, usage = [], None, None
        for event in self:
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                pieces.append(choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
        self.close()
        return "".join(pieces), reason, usage

    def close(self):
        self.answer.close()
        self.connection.close()


class Cluster:
    """N nodes with one model. All of their processes are gone after stop()."""

    def __init__(self, n, *options, model=True, log=None):
        self.log = log
        arguments = [SHOAL, "local", str(n), "--json", "--ctx", "1024", "--slots", "2", *options]
        if model:
            arguments += ["--model", need_model()]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        assert line, f"shoal local ended with {self.process.wait(20)}"
        self.nodes = json.loads(line)["nodes"]
        self.apis = [node["api"] for node in self.nodes]
        self.pids = [node["pid"] for node in self.nodes]

    def runners(self, api=None):
        """Rank -> process, as the cluster sees it now."""
        instances = state(api or self.apis[0])["instances"]
        return {rank["rank"]: rank["pid"] for rank in instances[0]["ranks"]}

    def wait_serving(self, api=None, restarts=0, seconds=TIMEOUT_S):
        def serving():
            instances = state(api or self.apis[0])["instances"]
            return instances and instances[0]["status"] == "serving" and instances[0]["restarts"] >= restarts

        wait_for("the model is served", serving, seconds)

    def pid_of(self, name):
        return next(node["pid"] for node in self.nodes if node["name"] == name)

    def all_pids(self):
        return [pid for node in self.nodes for pid in [node["pid"], *(r["pid"] for r in node["runners"])]]

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(40)
        self.process.stdout.close()
        return code


def run_once(prompt=PROMPT, n_max=16):
    """The same question to `shoal run`: one process, no node."""
    answer = subprocess.run(
        [SHOAL, "run", need_model(), prompt, "--max-tokens", str(n_max), "--ctx", "1024"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True, text=True,
    )
    return answer.stdout.rstrip("\n")

"""`shoal serve` on hosts of hosts.py, asked from inside of its host: its API listens on that host's loopback, as users have it."""

import json
import os
import signal
import subprocess
import time

from cluster import PROMPT, SHOAL, need_model, wait_for

API = "http://127.0.0.1:8420"


class Node:
    def __init__(self, host, folder, *options, secret=None):
        self.host, self.folder, self.options, self.secret = host, folder, options, secret
        folder.mkdir(parents=True, exist_ok=True)
        self.process = None

    def start(self, *more):
        arguments = [SHOAL, "serve", "--name", self.host.name, "--data-dir", self.folder / "data", "--threads", "1", "--ctx", "1024",
                     "--slots", "2", "--no-measure", *self.options, *more]
        if self.secret is not None:
            arguments += ["--secret-file", self.secret]
        self.log = open(self.folder / "log", "a")
        self.process = self.host.start(arguments, stdout=self.log, stderr=self.log)
        return self

    def log_text(self):
        return (self.folder / "log").read_text(errors="replace")

    def pid(self):
        """`ip netns exec` becomes the program: its process is the node's."""
        return self.process.pid

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid(), number)
        if number == signal.SIGKILL:
            self.process.wait(10)

    def ask(self, path, body=None, seconds=10):
        """(status, JSON); (0, None) when nobody answers."""
        arguments = ["curl", "-sS", "-m", seconds, "-w", "\n%{http_code}", API + path]
        if body is not None:
            arguments += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = self.host.run([str(a) for a in arguments], timeout=seconds + 10)
        if done.returncode != 0:
            return 0, None
        text, status = done.stdout.rsplit("\n", 1)
        return int(status), json.loads(text)

    def order(self, verb, **body):
        status, value = self.ask(f"/v1/cluster/{verb}", body)
        assert status == 200, (verb, status, value)
        return value

    def state(self):
        return self.ask("/v1/cluster/state")[1]

    def peers_up(self):
        now = self.state()
        return [n["name"] for n in now["nodes"] if n["status"] == "up" and not n["is_self"]] if now else []

    def serving(self):
        """Names of the nodes that hold the first instance; [] while it does not serve."""
        now = self.state()
        if not now or not now["instances"] or now["instances"][0]["status"] != "serving":
            return []
        return [rank["node"] for rank in now["instances"][0]["ranks"]]

    def wait_serving(self, names, seconds=30):
        wait_for(f"{sorted(names)} serve, as {self.host.name} sees it", lambda: set(self.serving()) == set(names), seconds)

    def stream(self, n_max=100, prompt=PROMPT):
        return Stream(self, n_max, prompt)


class Stream:
    """A streamed answer; remembers when each piece came."""

    def __init__(self, node, n_max, prompt):
        body = {"model": "smollm2", "messages": [{"role": "user", "content": prompt}], "max_tokens": n_max, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}
        self.process = node.host.start(["curl", "-sSN", "-m", "120", "-H", "Content-Type: application/json", "-d", json.dumps(body),
                                        API + "/v1/chat/completions"], stdout=subprocess.PIPE, text=True)
        self.pieces, self.times, self.reason, self.usage = [], [], None, None

    def read(self, count=None):
        for line in self.process.stdout:
            if not line.startswith("data: ") or line.strip() == "data: [DONE]":
                assert line.startswith((":", "data: ")) or not line.strip(), line
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            self.usage = event.get("usage") or self.usage
            for choice in event["choices"]:
                text = choice["delta"].get("content")
                if text:
                    self.pieces.append(text)
                    self.times.append(time.monotonic())
                self.reason = choice["finish_reason"] or self.reason
            if count is not None and len(self.pieces) >= count:
                return self
        return self

    def finish(self):
        self.read()
        self.process.stdout.close()
        assert self.reason in ("stop", "length"), self.reason
        return "".join(self.pieces)

    def longest_pause(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


def make_secret(folder):
    path = folder / "secret"
    path.write_text("a secret of the tests, which all nodes share\n")
    return path


__all__ = ["API", "Node", "Stream", "make_secret", "need_model", "wait_for"]

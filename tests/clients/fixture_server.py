"""Starts shoal-api-fixture for a test module and talks to it below the SDK."""

import json
import os
import pathlib
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def find_program():
    """SHOAL_API_FIXTURE, or the newest one below build/."""
    named = os.environ.get("SHOAL_API_FIXTURE")
    if named:
        return named
    found = sorted(ROOT.glob("build/*/tests/clients/shoal-api-fixture"), key=os.path.getmtime)
    return str(found[-1]) if found else None


class Server:
    def __init__(self, program, *arguments, stderr=None):
        self.process = subprocess.Popen(
            [program, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        line = self.process.stdout.readline()
        self.port = int(re.fullmatch(r"listening (\d+)\n", line).group(1))
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        """Ends it and returns the exit status: not 0 when something was left open."""
        self.process.terminate()
        return self.process.wait(timeout=20)

    def request(self, method, path, body=None, headers=None):
        """Returns status, headers, text."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.headers, answer.read().decode()

    def state(self):
        return json.loads(self.request("GET", "/v1/cluster/state")[2])

    def wait_for_state(self, key, value, timeout_s):
        """Returns the seconds until the counter has that value, or fails."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            if self.state()[key] == value:
                return time.monotonic() - begin
            time.sleep(0.002)
        raise AssertionError(f"{key} is {self.state()[key]}, not {value}, after {timeout_s} s")

    def open_stream(self, script, receive_bytes=None, **more):
        """A raw socket on which a streamed chat has been asked for."""
        body = json.dumps(chat(script, stream=True, **more)).encode()
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return sock

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def chat(script, **more):
    """The body of a request whose last user message is the script."""
    return {"model": "tiny", "messages": [{"role": "user", "content": script}], **more}

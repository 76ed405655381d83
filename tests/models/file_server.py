"""An HTTP server with files that misbehaves as it is told. Each path has a `File` with its content and its faults."""

import dataclasses
import hashlib
import http.server
import json
import random
import re
import struct
import threading
import time


def gguf(n_bytes, seed=0, architecture="llama"):
    """A GGUF file of about this size: one tensor with random bytes."""
    n = max(n_bytes // 4, 64)

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3)
    for key, value in (("general.architecture", architecture), ("general.name", f"test {seed}")):
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("general.file_type") + struct.pack("<II", 4, 0)
    head += text("t") + struct.pack("<IQIQ", 1, n, 0, 0)
    head += b"\0" * (-len(head) % 32)
    return head + random.Random(seed).randbytes(4 * n)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass
class File:
    data: bytes
    etag: str | None = '"1"'
    modified: str | None = "Wed, 21 Oct 2015 07:28:00 GMT"
    ranges: bool = True
    length: int | None = 0  # what Content-Length says: 0 the truth, None nothing (the stream just ends)
    statuses: list = dataclasses.field(default_factory=list)  # of the next answers, instead of the file: (status, headers)
    cuts: list = dataclasses.field(default_factory=list)  # the next answers end after so many bytes
    cut_share: float = 0.0  # of all answers, at random
    slow: float = 0.0  # seconds before each 64 KiB
    hang_after: int | None = None  # of each answer, bytes; then silence
    redirect: str | None = None
    on_request: object = None  # called with the file before each answer
    shift: int = 0  # answers with a range that begins so much later


class Server:
    def __init__(self):
        self.files, self.requests, self.lock = {}, [], threading.Lock()
        self.random = random.Random(1)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        class Http(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # clients that go away are what is tested

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def add(self, path, data, **more):
        self.files[path] = File(data, **more)
        return self.files[path]

    def add_repo(self, repo, files, hashes=True):
        """A hub's repository: the list of its files, and the files."""
        listing = []
        for name, data in files.items():
            item = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            if hashes:
                item["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            listing.append(item)
            self.add(f"/{repo}/resolve/main/{name}", data)
        self.add(f"/api/models/{repo}/tree/main", json.dumps(listing).encode())

    def asked(self, path):
        return [r for r in self.requests if r[0] == path]

    def bytes_sent(self, path):
        return sum(r[2] for r in self.requests if r[0] == path)

    def answer(self, h):
        path = h.path.split("?")[0]
        f = self.files.get(path)
        record = [path, h.headers.get("Range"), 0, dict(h.headers)]
        with self.lock:
            self.requests.append(record)
            status = f.statuses.pop(0) if f and f.statuses else None
            cut = f.cuts.pop(0) if f and f.cuts else None
        if f and f.on_request:
            f.on_request(f)
        if f is None:
            status = (404, {})
        elif f.redirect:
            status = (302, {"Location": f.redirect})
        if status:
            h.send_response(status[0])
            for key, value in status[1].items():
                h.send_header(key, value)
            h.send_header("Content-Length", "0")
            h.end_headers()
            return
        self.send(h, f, cut, record)

    def send(self, h, f, cut, record):
        data, begin, end = f.data, 0, len(f.data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range", ""))
        if wanted and f.ranges:
            begin = int(wanted[1]) + f.shift
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            if begin >= len(data):
                h.send_response(416)
                h.send_header("Content-Range", f"bytes */{len(data)}")
                h.send_header("Content-Length", "0")
                h.end_headers()
                return
            h.send_response(206)
            h.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            h.send_response(200)
        if f.etag:
            h.send_header("ETag", f.etag)
        if f.modified:
            h.send_header("Last-Modified", f.modified)
        if f.length is None:
            h.close_connection = True
        else:
            h.send_header("Content-Length", str(f.length or end - begin))
        h.end_headers()
        if cut is None and f.cut_share and self.random.random() < f.cut_share:
            cut = self.random.randrange(0, end - begin)
        for at in range(begin, end, 65536):
            piece = data[at : min(at + 65536, end)]
            if cut is not None and at - begin + len(piece) > cut:
                piece = piece[: cut - (at - begin)]
            if f.hang_after is not None and at - begin >= f.hang_after:
                time.sleep(60)
            h.wfile.write(piece)
            record[2] += len(piece)
            if cut is not None and at - begin + len(piece) >= cut:
                h.wfile.flush()
                h.close_connection = True
                h.connection.close()
                return
            if f.slow:
                time.sleep(f.slow)

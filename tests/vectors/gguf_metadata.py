"""Key-value pairs of a GGUF file, in half a second where a vocabulary has 262,144 tokens. (The package gguf makes an object of each.)"""

import functools
import mmap
import struct

import numpy as np

TYPES = ["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8"]
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def numbers(self, kind, n):
        kind = np.dtype(TYPES[kind])
        found = np.frombuffer(self.data, kind, n, self.at)
        self.at += kind.itemsize * n
        return found.tolist()

    def string(self):
        (n,) = struct.unpack_from("<Q", self.data, self.at)
        self.at += 8 + n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(kind, 1)[0]
        (kind,), (n,) = self.numbers(4, 1), self.numbers(10, 1)
        return self.numbers(kind, n) if TYPES[kind] is not None else [self.value(kind) for _ in range(n)]


@functools.cache
def read(path):
    """All of them, as {key: number, text or list}."""
    found = {}
    with open(path, "rb") as file:
        reader = Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    magic, version, _, n = struct.unpack_from("<4sIQQ", reader.data)
    assert magic == b"GGUF" and version in (2, 3), path
    reader.at = struct.calcsize("<4sIQQ")
    for _ in range(n):
        key = reader.string()
        (kind,) = reader.numbers(4, 1)
        found[key] = reader.value(kind)
    return found

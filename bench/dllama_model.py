#!/usr/bin/env python3
"""A model of random weights in distributed-llama's file format, with a tokenizer of made-up tokens: for speed comparisons only.

    bench/dllama_model.py FOLDER [--layers 16 --embd 2048 --ff 8192 --heads 32 --kv-heads 8 --vocab 49152]

Writes FOLDER/model.m (matrices Q40, embedding and norms f32) and FOLDER/model.t. The layout is that of its converter (version of 2025): a header of
key-value pairs, then the tensors in the order in which the program reads them.
"""

import argparse
import pathlib
import struct

import numpy as np

MODEL_MAGIC, TOKENIZER_MAGIC, ARCH_LLAMA, Q40 = 0xA00ABCD, 0x567124, 0xABCD00, 2
CONTEXT = 4096


def header(magic, pairs):
    data = b"".join(struct.pack("<ii", key, value) for key, value in pairs)
    return struct.pack("<ii", magic, 8 + len(data)) + data


def write_model(path, args):
    random = np.random.default_rng(1)
    head_dim = args.embd // args.heads
    pairs = [(0, 0), (1, ARCH_LLAMA), (2, args.embd), (3, args.ff), (4, args.layers), (5, args.heads), (6, args.kv_heads), (7, 0), (8, 0),
             (9, args.vocab), (10, CONTEXT), (11, 1), (12, 10000), (13, Q40), (19, head_dim), (20, 5)]

    def q40(rows, columns):
        """Blocks of 32: an f16 scale and 16 bytes of two 4-bit numbers."""
        blocks = np.zeros(rows * columns // 32, dtype=[("scale", "<f2"), ("quants", "u1", 16)])
        blocks["scale"] = 0.02 / 8
        blocks["quants"] = random.integers(0, 256, (len(blocks), 16), dtype=np.uint8)
        return blocks.tobytes()

    with open(path, "wb") as file:
        file.write(header(MODEL_MAGIC, pairs))
        for row in range(0, args.vocab, 1024):
            file.write((random.standard_normal((min(1024, args.vocab - row), args.embd)) * 0.02).astype("<f4").tobytes())
        kv = args.kv_heads * head_dim
        for _ in range(args.layers):
            for rows, columns in ((args.embd, args.embd), (kv, args.embd), (kv, args.embd), (args.embd, args.embd), (args.ff, args.embd),
                                  (args.embd, args.ff), (args.ff, args.embd)):
                file.write(q40(rows, columns))
            file.write(np.ones(2 * args.embd, dtype="<f4").tobytes())
        file.write(np.ones(args.embd, dtype="<f4").tobytes())
        file.write(q40(args.vocab, args.embd))


def write_tokenizer(path, vocab):
    tokens = [bytes([i]) for i in range(256)] + [b"<%05d>" % i for i in range(256, vocab)]
    bos, end = vocab - 2, vocab - 1
    with open(path, "wb") as file:
        file.write(header(TOKENIZER_MAGIC, [(3, bos), (0, 1), (1, vocab), (2, max(map(len, tokens))), (9, 1), (10, 0)]))
        file.write(struct.pack("<i", end))
        for token in tokens:
            file.write(struct.pack("<fI", 0.0, len(token)) + token)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in (("layers", 16), ("embd", 2048), ("ff", 8192), ("heads", 32), ("kv-heads", 8), ("vocab", 49152)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_model(args.folder / "model.m", args)
    write_tokenizer(args.folder / "model.t", args.vocab)


if __name__ == "__main__":
    main()

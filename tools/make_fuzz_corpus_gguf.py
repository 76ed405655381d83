#!/usr/bin/env python3
"""Writes the corpus of tests/fuzz/fuzz_gguf.c: small valid models, and the same broken in every way we know of.

usage: tools/make_fuzz_corpus_gguf.py [FOLDER]   (tests/fuzz/corpus/gguf)
The files are the same each time; what the fuzzer found is added by hand under a name that says what it was.
"""

import pathlib
import random
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return string(value) if kind == STRING else struct.pack("<" + CODES[kind], value)


def value(key, kind, item):
    return string(key) + struct.pack("<I", kind) + scalar(kind, item)


def array(key, kind, items, count=None):
    head = string(key) + struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count)
    return head + b"".join(scalar(kind, item) for item in items)


def tensor(name, dims, number, offset):
    return string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", number, offset)


def file(values, tensors, data=b"", version=3, n_values=None, n_tensors=None, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors,
                                 len(values) if n_values is None else n_values)
    head += b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def place(shapes, alignment=32):
    """Tensors one after the other, from (name, dims, type)."""
    tensors, offset = [], 0
    for name, dims, kind in shapes:
        number, block, size = TYPES[kind]
        rows = 1
        for dim in dims[1:]:
            rows *= dim
        tensors.append(tensor(name, dims, number, offset))
        offset += dims[0] // block * size * rows
        offset += -offset % alignment
    return tensors, bytes(offset)


def model(arch="llama", layers=1, embd=32, ff=32, heads=2, kv=1, dim=16, vocab=8, kind="Q4_0", more=(), extra=(),
          tied=False, bias=False, out="Q4_0"):
    gemma = arch == "gemma3"
    values = [value("general.architecture", STRING, arch)]
    for key, number in (("block_count", layers), ("context_length", 64), ("embedding_length", embd),
                        ("feed_forward_length", ff), ("attention.head_count", heads),
                        ("attention.head_count_kv", kv), ("attention.key_length", dim),
                        ("attention.value_length", dim)):
        values.append(value(f"{arch}.{key}", U32, number))
    values.append(value(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5))
    values += more
    q, k = heads * dim, kv * dim
    shapes = [("token_embd.weight", (embd, vocab), kind), ("output_norm.weight", (embd,), "F32")]
    for i in range(layers):
        layer = [("attn_norm.weight", (embd,), "F32"), ("attn_q.weight", (embd, q), kind),
                 ("attn_k.weight", (embd, k), kind), ("attn_v.weight", (embd, k), kind),
                 ("attn_output.weight", (q, embd), out), ("ffn_norm.weight", (embd,), "F32"),
                 ("ffn_gate.weight", (embd, ff), kind), ("ffn_up.weight", (embd, ff), kind),
                 ("ffn_down.weight", (ff, embd), kind)]
        if gemma:
            layer += [("attn_q_norm.weight", (dim,), "F32"), ("attn_k_norm.weight", (dim,), "F32"),
                      ("post_attention_norm.weight", (embd,), "F32"), ("post_ffw_norm.weight", (embd,), "F32")]
        if bias:
            layer += [("attn_q.bias", (q,), "F32"), ("attn_k.bias", (k,), "F32"), ("attn_v.bias", (k,), "F32")]
        shapes += [(f"blk.{i}.{name}", dims, t) for name, dims, t in layer]
    if not tied and not gemma:
        shapes.append(("output.weight", (embd, vocab), kind))
    tensors, data = place(shapes + list(extra))
    return file(values, tensors, data)


def valid():
    window = [value("gemma3.attention.sliding_window", U32, 8), value("gemma3.rope.scaling.type", STRING, "linear"),
              value("gemma3.rope.scaling.factor", F32, 8.0)]
    pattern = [*window, array("gemma3.attention.sliding_window_pattern", BOOL, [1, 0])]
    yield "valid-llama", model()
    yield "valid-llama-tied-bias", model(tied=True, bias=True)
    yield "valid-llama-three-kv-heads", model(heads=6, kv=3, layers=2)
    yield "valid-llama-blocks-of-256", model(heads=4, kv=4, dim=64, out="Q4_K")
    yield "valid-llama-rope-factors", model(extra=[("rope_freqs.weight", (8,), "F32")])
    yield "valid-gemma3", model("gemma3", more=window, tied=True)
    yield "valid-gemma3-pattern-list", model("gemma3", layers=2, more=pattern, tied=True)
    kinds = [value(f"k{kind}", kind, 1) for kind in CODES] + [array(f"a{kind}", kind, [1, 0, 1]) for kind in CODES]
    kinds += [array("words", STRING, ["a", "", "bc"]), array("none", STRING, []), value("s", STRING, "x")]
    yield "valid-kinds-version-2", file(kinds, [], version=2)
    yield "valid-alignment-64", file([value("general.alignment", U32, 64)], place([("t", (8,), "F32")], 64)[0], bytes(64),
                                     alignment=64)
    yield "valid-empty", file([], [])


def adversarial():
    big = 2**64 - 1
    one, data = place([("t", (32,), "F32")])
    yield "bad-counts-huge", file([], [], n_values=big, n_tensors=big)
    yield "bad-counts-at-limit", file([], [], n_values=65536, n_tensors=65536)
    yield "bad-magic", b"GGML" + bytes(20)
    yield "bad-big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    yield "bad-version", file([], [], version=1)
    yield "bad-duplicate-key", file([value("k", U8, 1), value("k", U8, 2)], [])
    yield "bad-duplicate-tensor", file([], [tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32)], bytes(64))
    yield "bad-overlap", file([], [tensor("t", (16,), 0, 0), tensor("u", (8,), 0, 32)], bytes(64))
    yield "bad-offset-overflow", file([], [tensor("t", (8,), 0, 2**64 - 32)], bytes(64))
    yield "bad-offset-unaligned", file([], [tensor("t", (8,), 0, 4)], bytes(64))
    yield "bad-dims-overflow", file([], [tensor("t", (2**32, 2**32), 0, 0)], bytes(64))
    yield "bad-dims-overflow-signed", file([], [tensor("t", (2**63,), 0, 0)], bytes(64))
    yield "bad-dims-zero", file([], [tensor("t", (8, 0), 0, 0)], bytes(64))
    yield "bad-dims-five", file([], [tensor("t", (1, 1, 1, 1, 1), 0, 0)], bytes(64))
    yield "bad-type", file([], [tensor("t", (32,), 4, 0)], bytes(64))
    yield "bad-type-huge", file([], [tensor("t", (32,), 2**32 - 1, 0)], bytes(64))
    yield "bad-row", file([], [tensor("t", (31,), 2, 0)], bytes(64))
    yield "bad-name-long", file([], [tensor("n" * 64, (8,), 0, 0)], bytes(64))
    yield "bad-name-nul", file([], [tensor(b"a\0b", (8,), 0, 0)], bytes(64))
    yield "bad-key-empty", file([value("", U8, 1)], [])
    yield "bad-kind", file([string("k") + struct.pack("<I", 13) + bytes(8)], [])
    yield "bad-bool", file([value("k", BOOL, 2)], [])
    yield "bad-string-huge", file([string("k") + struct.pack("<IQ", STRING, big)], [])
    yield "bad-array-huge", file([array("k", U64, [], big)], [])
    yield "bad-array-strings", file([array("k", STRING, [], 1 << 24)], [], bytes(256))
    yield "bad-array-nested", file([string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(12)], [])
    yield "bad-alignment", file([value("general.alignment", U32, 33)], one, data)
    yield "bad-alignment-huge", file([value("general.alignment", U64, 2**63)], one, data)
    yield "bad-vocab", model(more=[array("tokenizer.ggml.tokens", STRING, ["a", "b"])])
    yield "bad-heads", model(more=[value("llama.expert_count", U32, 8)])
    yield "bad-rope-nan", model(more=[value("llama.rope.freq_base", F32, float("nan"))])
    yield "bad-layer-beyond", model(extra=[("blk.7.attn_norm.weight", (32,), "F32")])
    yield "bad-layers-1024", model().replace(b"llama.block_count\x04\0\0\0\x01\0", b"llama.block_count\x04\0\0\0\0\x04")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fuzz/corpus/gguf")
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    files = dict(valid())
    whole = files["valid-llama"]
    for i, n in enumerate((0, 3, 23, 40, 200, 700, len(whole) - 1)):
        files[f"cut-{i}"] = whole[:n]
    for i in range(8):
        data = bytearray(files["valid-gemma3"])
        for _ in range(1 + i % 3):
            data[rng.randrange(8, 1200)] ^= 1 << rng.randrange(8)
        files[f"flip-{i}"] = bytes(data)
    files.update(adversarial())
    for name, data in files.items():
        (folder / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()

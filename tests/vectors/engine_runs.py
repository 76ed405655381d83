"""Runs of the project's programs for test_reference.py and test_splits.py.

SHOAL_BUILD says where they were built (default: build/dev), SHOAL_TEST_MODELS where smollm2.gguf and gemma3.gguf are (default:
build/models). Copies of these models with f32 weights are made beside them once and kept, or in the temporary folder where that
one cannot be written.
"""

import functools
import json
import os
import struct
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gguf_metadata

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("SHOAL_BUILD", HERE.parent.parent / "build" / "dev"))
MODELS = Path(os.environ.get("SHOAL_TEST_MODELS", HERE.parent.parent / "build" / "models"))
LIMIT_S = 900  # for one run: many times what a quiet computer needs
ADD_BOS, PARSE_SPECIAL = 1, 2


def program(name):
    path = BUILD / {"shoal": "shoal", "shoal-make-model": "tools/shoal-make-model"}.get(name, f"tests/vectors/{name}")
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return path


def call(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=LIMIT_S, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
    return done


# ---- models ----


def model(name):
    path = MODELS / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@functools.cache
def f32_model(name):
    """The same model, its weights dequantized."""
    source, folder = model(name), MODELS
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    path = folder / f"{name}.f32.gguf"
    if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
        made = path.with_suffix(f".{os.getpid()}")
        call(program("shoal-make-model"), "--dequantize", source, "--type", "F32", made)
        made.replace(path)
    return path


def any_model(name, weights):
    return f32_model(name) if weights == "f32" else model(name)


# ---- text ----


def tokenize(tool, path, text, flags=ADD_BOS):
    """Token ids of bytes, by the model's own tokenizer."""
    done = call(tool, path, input=struct.pack("<IB", len(text), flags) + text)
    n = struct.unpack_from("<I", done.stdout)[0]
    return np.frombuffer(done.stdout, dtype="<i4", count=n, offset=4)


def chat_template(path):
    return gguf_metadata.read(path).get("tokenizer.chat_template")


def prompt_tokens(name, prompt):
    """What `shoal run` makes of a prompt: through the chat template if the model has one, as it is otherwise."""
    path = model(name)
    template = chat_template(path)
    if template is None:
        return tokenize(program("tokenize_tool"), path, prompt.encode())
    context = {"messages": [{"role": "user", "content": prompt}], "add_generation_prompt": True, "tools": None}
    request = json.dumps({"template": template, "context": context, "now": 0}) + "\n"
    text = json.loads(call(program("template_tool"), input=request.encode()).stdout)["text"]
    return tokenize(program("tokenize_tool"), path, text.encode(), PARSE_SPECIAL)


# ---- runs ----


def run_engine(path, sequences, picks=None, **options):
    """Teacher-forced; options as engine_tool has them (split="tensor", ranks=2, ...). One record for each token: with picks
    ([n_tokens][n]) hash, log_sum, token, logit, second, picked [n]; otherwise all logits."""
    tool = program("engine_tool")
    with tempfile.TemporaryDirectory(prefix="shoal-vectors-") as folder:
        folder = Path(folder)
        ids = [np.append(np.asarray(s, dtype=np.int32), np.int32(-1)) for s in sequences]
        np.concatenate(ids)[:-1].tofile(folder / "in")
        arguments = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
        if picks is not None:
            np.ascontiguousarray(picks, dtype=np.int32).tofile(folder / "picks")
            arguments += ["--summary", folder / "picks"]
        call(tool, path, folder / "in", folder / "out", *arguments)
        n_tokens = sum(len(s) for s in sequences)
        if picks is None:
            return np.fromfile(folder / "out", dtype=np.float32).reshape(n_tokens, -1)
        fields = [("hash", "<u8"), ("log_sum", "<f8"), ("token", "<i4"), ("logit", "<f4"), ("second", "<f4"),
                  ("picked", "<f4", (np.shape(picks)[1],))]
        unpadded = np.dtype(fields)
        record = np.dtype({"names": unpadded.names, "formats": [unpadded.fields[n][0] for n in unpadded.names],
                           "offsets": [unpadded.fields[n][1] for n in unpadded.names], "itemsize": (unpadded.itemsize + 7) // 8 * 8})
        return np.fromfile(folder / "out", dtype=record)


def run_shoal(path, prompt, n_max=256, **options):
    """(token ids, figures) of `shoal run`."""
    raw = ["--raw"] if chat_template(path) is None else []
    arguments = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
    done = call(program("shoal"), "run", path, prompt, "--tokens", "--json", "--max-tokens", n_max, *raw, *arguments)
    return [int(line) for line in done.stdout.split()], json.loads(done.stderr.splitlines()[-1])


def processors():
    """This process's share of them when several run tests side by side: threads that wait for each other are slow where processors
    are short."""
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, len(os.sched_getaffinity(0)) // n_workers)


def at_once(function, items):
    """Results of function(item), as many at once as there are processors: most runs use one of them."""
    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(function, items))

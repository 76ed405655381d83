"""The same tokens however a model is shared among ranks. docs/internals/numerics.md says what must be identical and why.

- A pipeline computes what one process computes, bit for bit.
- A tensor split adds up partial sums in another order. It is identical to itself, over any transport, on each run; the unsplit
  model's choices differ from it only where two tokens are nearly level.
"""

import functools
import json

import numpy as np
import pytest

import engine_runs as runs
from make_chat import PROMPTS

GREEDY = {"temperature": 0}
SEEDED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 20240611}
NAMES = ["smollm2", "gemma3"]


@functools.cache
def answer(name, prompt, sampling, n_max, split, repeat=0):
    """Tokens of `shoal run`; repeat only makes a new run of the same."""
    tokens, _ = runs.run_shoal(runs.model(name), PROMPTS[name][prompt], n_max, threads=1, **dict(sampling), **dict(split))
    return tokens


def answers(name, requests):
    """requests: (prompt, sampling, n_max, split[, repeat])."""
    return runs.at_once(lambda r: answer(name, r[0], tuple(r[1].items()), r[2], tuple(r[3].items()), *r[4:]), requests)


def pipeline(n):
    return {"ranks": n, "split": "pipeline", "comm": "tcp"}


# name, pipeline, sampling, prompts
PIPELINES = [
    ("smollm2", 2, GREEDY, range(10)),
    ("smollm2", 3, SEEDED, range(0, 10, 3)),
    ("gemma3", 3, GREEDY, range(1)),
    ("gemma3", 2, SEEDED, range(1, 3)),
]


@pytest.mark.parametrize("name,n_ranks,sampling,prompts", PIPELINES,
                         ids=[f"{n}-{r}-{'greedy' if s is GREEDY else 'seeded'}" for n, r, s, _ in PIPELINES])
def test_pipeline_gives_the_same_tokens(name, n_ranks, sampling, prompts):
    requests = [(p, sampling, 256, split) for p in prompts for split in ({}, pipeline(n_ranks))]
    found = answers(name, requests)
    lengths = [len(tokens) for tokens in found[::2]]
    print(f"{name}: answers of {lengths} tokens")
    assert found[::2] == found[1::2]
    assert max(lengths) > 100


@functools.cache
def conversations(name):
    return json.loads((runs.HERE / "data" / "chat.json").read_text())[name]


@functools.cache
def scored(name, weights, options=()):
    """Teacher-forced over the conversations; only the rows that chose the answers' tokens."""
    sequences = [np.array(c["tokens"], dtype=np.int32) for c in conversations(name)]
    following = np.concatenate([np.append(s[1:], s[:1]) for s in sequences])
    others = (np.arange(32) * 7919 + 17) % 49152
    picks = np.concatenate([following[:, None], np.broadcast_to(others, (len(following), len(others)))], axis=1)
    rows = runs.run_engine(runs.any_model(name, weights), sequences, picks, **dict(options))
    is_answer = np.concatenate([(np.arange(len(c["tokens"])) >= c["n_prompt"] - 1) & (np.arange(len(c["tokens"])) < len(c["tokens"]) - 1)
                                for c in conversations(name)])
    return rows[is_answer]


def options(**given):
    return tuple(given.items())


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_gives_the_same_bits(name):
    """All logits of every step, prefill and single tokens, by a hash of them."""
    for steps in ({}, {"one_by_one": 24}):
        one = scored(name, "quantized", options(**steps))
        assert len(set(one["hash"].tolist())) > 400
        for n_ranks in (2, 3):
            assert (scored(name, "quantized", options(ranks=n_ranks, **steps))["hash"] == one["hash"]).all(), (n_ranks, steps)


TENSORS = {"tensor 2": {"split": "tensor", "ranks": 2}, "tensor 3": {"split": "tensor", "ranks": 3},
           "tensor 4": {"split": "tensor", "ranks": 4}, "2x2": {"split": "2x2", "ranks": 4}}
# (split, sampling, tokens): more ranks than processors take turns, so these are shorter. Four ranks: more than SmolLM2 has KV heads;
# two are more than gemma3 has.
TENSOR_RUNS = {
    "smollm2": [("tensor 2", GREEDY, 256), ("tensor 2", SEEDED, 256), ("tensor 3", SEEDED, 128), ("tensor 4", GREEDY, 128), ("2x2", SEEDED, 128)],
    "gemma3": [("tensor 2", SEEDED, 96), ("2x2", GREEDY, 48)],
}


@pytest.mark.parametrize("name", NAMES)
def test_tensor_split_repeats_itself(name):
    """Over threads once, over processes and tcp twice."""
    for i, (split, sampling, n_max) in enumerate(TENSOR_RUNS[name]):
        prompt = i % len(PROMPTS[name])
        found = [answers(name, [(prompt, sampling, n_max, {**TENSORS[split], "comm": comm}, repeat)])[0]
                 for comm, repeat in (("local", 0), ("tcp", 0), ("tcp", 1))]
        print(f"{name}, {split}: {len(found[0])} tokens")
        assert found[0] == found[1] == found[2], split


def compare(name, weights, split):
    """(share of the same choices, largest margin where they differ, the bound for that)."""
    one = scored(name, weights)
    # Rounding of one process against itself: short steps use other kernels than long ones.
    chunked = scored(name, weights, options(batch=32))
    noise = np.abs(chunked["picked"] - one["picked"])
    bound = 2 * float(noise.max())
    other = scored(name, weights, tuple(TENSORS[split].items()))
    differs = np.flatnonzero(other["token"] != one["token"])
    margins = (one["logit"] - one["second"])[differs]
    agreement = 1 - len(differs) / len(one)
    print(f"{name}, {weights}, {split}: {len(differs)} of {len(one)} choices differ, agreement {100 * agreement:.2f} % (one process in "
          f"steps of 32 tokens: {100 * (chunked['token'] == one['token']).mean():.2f} %); margins there {np.round(margins, 3).tolist()}, "
          f"bound {bound:.3f}; rms difference {np.sqrt(((other['picked'] - one['picked'])**2).mean()):.4f}, of steps of 32 "
          f"{np.sqrt((noise**2).mean()):.4f}")
    return agreement, margins.max(initial=0.0), bound


@pytest.mark.parametrize("split", TENSORS)
@pytest.mark.parametrize("name", NAMES)
def test_tensor_split_agrees(name, split):
    assert len(scored(name, "quantized")) >= 512
    agreement, margin, bound = compare(name, "quantized", split)
    assert agreement >= 0.98
    assert margin <= bound


@pytest.mark.parametrize("name,split", [("smollm2", "tensor 2"), ("smollm2", "tensor 4"), ("gemma3", "2x2")])
def test_tensor_split_agrees_with_f32_weights(name, split):
    agreement, _, _ = compare(name, "f32", split)
    assert agreement == 1.0

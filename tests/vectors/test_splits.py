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
    """Tokens of `shoal run`; repeat only makes a new run of the same. Without guesses: what is tried depends on measured times, and ggml's
    kernels for K types round by the number of rows."""
    tokens, _ = runs.run_shoal(runs.model(name), PROMPTS[name][prompt], n_max, threads=1, draft=0, **dict(sampling), **dict(split))
    return tokens


def answers(name, requests):
    """requests: (prompt, sampling, n_max, split[, repeat])."""
    return runs.at_once(lambda r: answer(name, r[0], tuple(r[1].items()), r[2], tuple(r[3].items()), *r[4:]), requests)


def pipeline(n):
    return {"ranks": n, "split": "pipeline", "comm": "tcp"}


# name, pipeline, sampling, prompts
PIPELINES = [
    ("smollm2", 2, GREEDY, range(0, 10, 6)),
    ("smollm2", 3, SEEDED, range(1, 10, 5)),
    ("gemma3", 2, GREEDY, range(1)),
    ("gemma3", 3, SEEDED, range(1, 2)),
]


@pytest.mark.parametrize("name,n_ranks,sampling,prompts", PIPELINES,
                         ids=[f"{n}-{r}-{'greedy' if s is GREEDY else 'seeded'}" for n, r, s, _ in PIPELINES])
def test_pipeline_gives_the_same_tokens(name, n_ranks, sampling, prompts):
    n_max = 192 if name == "smollm2" else 112
    requests = [(p, sampling, n_max, split) for p in prompts for split in ({}, pipeline(n_ranks))]
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
    """All logits of every step, of many tokens and of one, by a hash of them."""
    tokens = conversations(name)[0]["tokens"][:96]
    for steps in ({}, {"one_by_one": 16}):
        one, *others = [runs.run_engine(runs.model(name), [tokens], np.zeros((96, 1)), ranks=n, **steps) for n in (1, 2, 3)]
        assert len(set(one["hash"].tolist())) == 96
        for other in others:
            assert other.tobytes() == one.tobytes(), steps


TENSORS = {"tensor 2": {"split": "tensor", "ranks": 2}, "tensor 3": {"split": "tensor", "ranks": 3},
           "tensor 4": {"split": "tensor", "ranks": 4}, "2x2": {"split": "2x2", "ranks": 4}}
# (split, sampling, tokens): more ranks than processors take turns, so these are shorter. Four ranks: more than SmolLM2 has KV heads;
# two are more than gemma3 has.
TENSOR_RUNS = {
    "smollm2": [("tensor 2", GREEDY, 64), ("tensor 2", SEEDED, 128), ("tensor 3", SEEDED, 48), ("tensor 4", GREEDY, 48),
                ("2x2", SEEDED, 48)],
    "gemma3": [("tensor 2", SEEDED, 48), ("2x2", GREEDY, 24)],
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


def margins(rows):
    return rows["logit"] - rows["second"]


@functools.cache
def noise(name):
    """What rounding does to one process: it takes short steps through other kernels than long ones. (share of choices that are the
    same, rms change of the margin between the two likeliest tokens)"""
    one, other = scored(name, "quantized"), scored(name, "quantized", options(batch=32))
    change = margins(one) - margins(other)
    return float((one["token"] == other["token"]).mean()), float(np.sqrt((change.astype(np.float64)**2).mean()))


def compare(name, weights, split):
    """(share of the same choices, margins where they differ)."""
    one, other = scored(name, weights), scored(name, weights, tuple(TENSORS[split].items()))
    differs = one["token"] != other["token"]
    rms = np.sqrt(((other["picked"] - one["picked"])**2).mean())
    print(f"{name}, {weights} weights, {split}: {differs.sum()} of {len(one)} choices differ, {100 * (1 - differs.mean()):.2f} % agree; "
          f"logits differ by {rms:.4f} rms; margins where choices differ: {np.round(margins(one)[differs], 3).tolist()}")
    return 1 - differs.mean(), margins(one)[differs]


COMPARED = [("smollm2", split) for split in TENSORS] + [("gemma3", "tensor 2"), ("gemma3", "tensor 3")]


@pytest.mark.parametrize("name,split", COMPARED)
def test_tensor_split_agrees(name, split):
    """As well as one process agrees with itself, and always where the choice is clear."""
    assert len(scored(name, "quantized")) >= 512
    agreement, differing = compare(name, "quantized", split)
    self_agreement, deviation = noise(name)
    n_close = int((margins(scored(name, "quantized")) <= 3 * deviation).sum())
    print(f"one process in steps of 32 tokens: {100 * self_agreement:.2f} % agree, margins change by {deviation:.3f} rms; margins below "
          f"three times that: {n_close}")
    assert agreement >= self_agreement - 0.02  # two standard errors of such a difference
    assert differing.max(initial=0.0) <= 3 * deviation


@pytest.mark.parametrize("name,split", [("smollm2", "tensor 2"), ("smollm2", "tensor 4"), ("gemma3", "2x2")])
def test_tensor_split_agrees_with_f32_weights(name, split):
    agreement, _ = compare(name, "f32", split)
    assert agreement == 1.0

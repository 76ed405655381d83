"""The engine's numbers against a reference engine: mlx-lm, f32 on the CPU.

data/reference_<model>.npz keeps what the reference says of data/text.md (make_reference.py); live runs check that mlx-lm indeed
says so. docs/internals/numerics.md explains the figures.
"""

import functools

import numpy as np
import pytest

import engine_runs as runs
from make_reference import summarize

NAMES = ["smollm2", "gemma3"]
N_LOGITS = 512  # tokens whose logits are compared

# Largest and rms difference of logits.
LOGIT_MAX = {"smollm2": 0.04, "gemma3": 0.03}  # measured: 0.019, 0.015
LOGIT_RMS = {"smollm2": 0.004, "gemma3": 0.004}  # measured: 0.0020, 0.0024
PERPLEXITY_MAX = 0.005  # relative
# What rounding activations to 8 bits costs the reference engine itself (nll_8_bits against nll), rounded up.
ROUNDING_COST_MAX = {"smollm2": 0.005, "gemma3": 0.0085}


@functools.cache
def reference(name):
    return np.load(runs.HERE / "data" / f"reference_{name}.npz")


@functools.cache
def scored(name, weights):
    """Our run over the whole text. Picked: the next token, the reference's best ones, its fixed others."""
    ref = reference(name)
    tokens = ref["tokens"]
    picks = np.concatenate([np.append(tokens[1:], tokens[:1])[:, None], ref["best"],
                            np.broadcast_to(ref["others"], (len(tokens), len(ref["others"])))], axis=1)
    return runs.run_engine(runs.any_model(name, weights), [tokens], picks, threads=runs.processors())


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_the_text(name):
    text = (runs.HERE / "data" / "text.md").read_bytes()
    tokens = reference(name)["tokens"]
    assert len(tokens) > 2000
    ours = runs.tokenize(runs.program("tokenize_tool"), runs.model(name), text)
    assert ours[:len(tokens)].tolist() == tokens.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    """f32 weights: every logit that was kept, of the first tokens."""
    ref, ours = reference(name), scored(name, "f32")[:N_LOGITS]
    n_best = ref["best"].shape[1]
    expected = np.concatenate([ref["best_logits"], ref["others_logits"]], axis=1)[:N_LOGITS]
    difference = np.abs(ours["picked"][:, 1:] - expected)
    rms = float(np.sqrt((difference.astype(np.float64)**2).mean()))
    print(f"{name}: logits differ by {difference[:, :n_best].max():.4f} (best), {difference[:, n_best:].max():.4f} (others) at "
          f"most, {rms:.5f} rms, standard deviation of the logits {expected.std():.2f}")
    assert difference.max() <= LOGIT_MAX[name]
    assert rms <= LOGIT_RMS[name]
    margin = (ref["best_logits"][:, 0] - ref["best_logits"][:, 1])[:N_LOGITS]
    others = np.flatnonzero(ours["token"] != ref["best"][:N_LOGITS, 0])
    print(f"{name}: {len(others)} of {N_LOGITS} likeliest tokens differ, the reference's margins there: {margin[others].tolist()}")
    # Two logits can only change places when they are nearer than twice the largest difference.
    assert (margin[others] <= 2 * difference[:, :n_best].max()).all()
    assert len(others) <= N_LOGITS // 100


def perplexity(name, weights, key):
    """(relative difference from the reference's, standard error of that): the error says whether the figure means anything."""
    expected = reference(name)[key].astype(np.float64)
    ours = scored(name, weights)[:len(expected)]
    nll = ours["log_sum"] - ours["picked"][:, 0]
    ratio, error = np.exp(nll.mean() - expected.mean()) - 1, (nll - expected).std() / np.sqrt(len(nll))
    print(f"{name}, {weights} weights, {key}: perplexity {np.exp(nll.mean()):.4f}, reference {np.exp(expected.mean()):.4f}: "
          f"{100 * ratio:+.3f} % (standard error {100 * error:.3f} %), {len(nll)} tokens")
    return ratio, error


@pytest.mark.parametrize("name", NAMES)
def test_perplexity(name):
    ratio, _ = perplexity(name, "f32", "nll")
    assert abs(ratio) <= PERPLEXITY_MAX


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_of_the_file_as_it_is(name):
    """With quantized weights the inputs of matrices are rounded to 8 bits. It may cost as much more than in the reference engine that
    does the same as ggml, which rounds K types' inputs more coarsely than our own products; against the one with dequantized
    weights in f32 it is what this rounding may cost."""
    ratio, _ = perplexity(name, "quantized", "nll_8_bits")
    assert ratio <= PERPLEXITY_MAX
    cost, error = perplexity(name, "quantized", "nll")
    assert cost <= ROUNDING_COST_MAX[name] + 2 * error


# ---- live ----


def live_engine():
    mx = pytest.importorskip("mlx.core", reason="no mlx on this computer")
    pytest.importorskip("mlx_lm")
    mx.set_default_device(mx.cpu)
    import reference_engine

    return reference_engine


def test_committed_vectors_live():
    """The reference engine says today what it said when the vectors were made."""
    engine, ref, n = live_engine(), reference("smollm2"), 16
    logits = engine.logits(engine.load(runs.model("smollm2")), ref["tokens"][:n])
    now = summarize(logits, ref["tokens"][1:n + 1], ref["others"])
    assert (now["best"][:, 0] == ref["best"][:n, 0]).all()
    for key in ("best_logits", "others_logits", "nll"):
        difference = np.abs(now[key] - ref[key][:n]).max()
        print(f"{key}: {difference:.6f}")
        assert difference <= 1e-3, key


TINY = {
    "llama": ["--arch", "llama", "--layers", 4, "--embd", 96, "--heads", 6, "--kv-heads", 3, "--ff", 192, "--seed", 5],
    # Seven layers: the sixth has no window; the window is shorter than the text.
    "gemma3": ["--arch", "gemma3", "--layers", 7, "--embd", 96, "--heads", 6, "--kv-heads", 3, "--head-dim", 32, "--ff", 192,
               "--window", 16, "--rope-base", 1000000, "--seed", 6],
}
# In standard deviations of the logits; the KV cache is f16. Measured: 0.0087 and 0.0014.
TINY_MAX, TINY_RMS = 0.015, 0.002
SPLITS = {"one rank": {}, "pipeline": {"ranks": 2}, "tensor": {"split": "tensor", "ranks": 2}, "2x2": {"split": "2x2", "ranks": 4}}


@pytest.mark.parametrize("arch", TINY)
def test_tiny_models_live(arch, tmp_path):
    """All logits of random models, on every kind of split."""
    engine, path = live_engine(), tmp_path / f"{arch}.gguf"
    runs.call(runs.program("shoal-make-model"), *TINY[arch], "--type", "F32", path)
    tokens = np.random.default_rng(11).integers(3, 259, 64).astype(np.int32)
    expected = engine.logits(engine.load(path), tokens)
    deviation, worst = expected.std(), 0.0
    for name, options in SPLITS.items():
        for steps in ({}, {"batch": 24}, {"one_by_one": 40}):
            difference = np.abs(runs.run_engine(path, [tokens], **options, **steps) - expected) / deviation
            rms = float(np.sqrt((difference.astype(np.float64)**2).mean()))
            print(f"{arch}, {name}, {steps}: {difference.max():.5f} at most, {rms:.6f} rms, in standard deviations of the logits")
            share = 1.0 if steps else 0.5  # of the limit; short steps add up values in f16
            worst = max(worst, difference.max() / TINY_MAX / share, rms / TINY_RMS / share)
    assert worst <= 1.0

"""Writes data/reference_<name>.npz: what the reference engine (mlx-lm, f32 on the CPU) says of data/text.md.

    make_reference.py MODEL.gguf NAME TOKENIZE_TOOL

TOKENIZE_TOOL: the program of that name in a build folder. Kept, for every token: its negative log-likelihood, the eight best
logits, and 32 logits of fixed other tokens, so that the file stays small and anybody can check it again. nll_8_bits: the negative
log-likelihoods once more, when the inputs of quantized matrices are rounded to 8 bits as ggml does. Slow (half an hour on two
processors): hence kept in the tree. test_reference.py checks a part of it against the live reference engine each time.
"""

import sys
from pathlib import Path

import numpy as np

import engine_runs
import reference_engine

N_TOKENS, N_BEST, N_OTHERS = 2304, 8, 32


def summarize(logits, targets, others):
    """What is kept of f32 logits [n][n_vocab]; targets [n] are the tokens that followed."""
    logits = logits.astype(np.float64)
    peak = logits.max(axis=1)
    log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    best = np.argpartition(-logits, N_BEST, axis=1)[:, :N_BEST]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1, kind="stable"), axis=1)
    return {
        "nll": (log_sum - logits[np.arange(len(logits)), targets]).astype(np.float32),
        "best": best.astype(np.int32),
        "best_logits": np.take_along_axis(logits, best, axis=1).astype(np.float32),
        "others_logits": logits[:, others].astype(np.float32),
    }


def score(model, tokens, **options):
    targets = np.append(tokens[1:], tokens[:1])  # the last one's is dropped in the end
    parts = []
    for first, logits in reference_engine.logits_in_parts(model, tokens, **options):
        others = ((np.arange(N_OTHERS) * 7919 + 17) % logits.shape[1]).astype(np.int32)
        parts.append(summarize(logits, targets[first:first + len(logits)], others))
        print(f"{first + len(logits)} of {len(tokens)} tokens", flush=True)
    kept = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {**kept, "nll": kept["nll"][:-1], "others": others}


def main():
    path, name, tokenize_tool = sys.argv[1:4]
    here = Path(__file__).parent
    tokens = engine_runs.tokenize(tokenize_tool, path, (here / "data" / "text.md").read_bytes())[:N_TOKENS]
    model = reference_engine.load(path)
    kept = score(model, tokens)
    kept["nll_8_bits"] = score(model, tokens, before_head=reference_engine.quantize_activations(model, path))["nll"]
    out = here / "data" / f"reference_{name}.npz"
    np.savez_compressed(out, tokens=tokens.astype(np.int32), **kept)
    for key in ("nll", "nll_8_bits"):
        print(f"{out}: {len(tokens)} tokens, {key}: perplexity {np.exp(kept[key].astype(np.float64).mean()):.4f}")


if __name__ == "__main__":
    main()

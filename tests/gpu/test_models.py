"""Real models on a GPU: the choices of the processors, but for near ties (docs/decisions/0006).

Processors round the input of every quantized matrix to 8 bits, which GPUs do not, so that a GPU may also be right where they are not:
then it chooses as the model with f32 weights does.
"""

import functools

import numpy as np
import pytest

from gpu import name as gpu
from gpu import runs

PROMPTS = {"smollm2": "Why is the sky blue?", "gemma3": "The capital of France is"}
N_TOKENS = 32


@functools.cache
def conversation(model):
    """(tokens of the prompt and of the processors' greedy answer, how many are the prompt's)"""
    prompt = runs.prompt_tokens(model, PROMPTS[model])
    tokens, _ = runs.run_shoal(runs.model(model), PROMPTS[model], N_TOKENS, draft=0, temperature=0)
    return np.concatenate([prompt, tokens]), len(prompt)


@functools.cache
def scored(model, weights="quantized", **options):
    """The rows that chose the answer, teacher-forced."""
    tokens, n_prompt = conversation(model)
    rows = runs.run_engine(runs.any_model(model, weights), [tokens], np.zeros((len(tokens), 1)), **options)
    return rows[n_prompt - 1:-1]


def margins(rows):
    return (rows["logit"] - rows["second"]).astype(np.float64)


@functools.cache
def near_tie(model):
    """Three times the rms change of a margin that other steps cause on the processors."""
    return 3 * np.sqrt(((margins(scored(model)) - margins(scored(model, batch=32)))**2).mean())


LAYOUTS = [("gpu", "pipeline"), ("gpu,cpu", "pipeline"), ("gpu,cpu", "tensor")]


@pytest.mark.parametrize("model", PROMPTS)
@pytest.mark.parametrize("layout,split", LAYOUTS, ids=[f"{layout} {split}" for layout, split in LAYOUTS])
def test_choices(model, layout, split):
    devices = layout.replace("gpu", gpu())
    one, found, exact = scored(model), scored(model, device=devices, ranks=layout.count(",") + 1, split=split), scored(model, "f32")
    differs = one["token"] != found["token"]
    is_clear = differs & (margins(one) > near_tie(model)) & (found["token"] != exact["token"])
    print(f"{model}, {split} on {devices}: {differs.sum()} of {len(one)} choices differ; their margins {np.round(margins(one)[differs], 3).tolist()}, near "
          f"ties {near_tie(model):.3f}; logits from f32 weights: {np.abs(found['logit'] - exact['logit']).mean():.3f}, of the processors "
          f"{np.abs(one['logit'] - exact['logit']).mean():.3f} (mean)")
    assert not is_clear.any()

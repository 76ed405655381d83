"""Real models on a GPU: the choices of the processors, but for near ties (docs/decisions/0006)."""

import functools

import numpy as np
import pytest

from gpu import name as gpu
from gpu import runs

PROMPTS = {"smollm2": "Why is the sky blue?", "gemma3": "The capital of France is"}
N_TOKENS = 32


@functools.cache
def answer(model, devices, split):
    """The greedy tokens of `shoal run`, with a rank for each device."""
    tokens, _ = runs.run_shoal(runs.model(model), PROMPTS[model], N_TOKENS, device=",".join(devices), ranks=len(devices), split=split,
                               draft=0, temperature=0)
    return tokens


@functools.cache
def scored(model, **options):
    """The rows that chose the processors' answer, teacher-forced."""
    prompt = runs.prompt_tokens(model, PROMPTS[model])
    tokens = np.concatenate([prompt, answer(model, ("cpu",), "pipeline")])
    rows = runs.run_engine(runs.model(model), [tokens], np.zeros((len(tokens), 1)), **options)
    return rows[len(prompt) - 1:-1]


def margins(rows):
    return rows["logit"] - rows["second"]


@functools.cache
def near_tie(model):
    """Three times the rms change of a margin that other steps cause on the processors."""
    change = (margins(scored(model)) - margins(scored(model, batch=32))).astype(np.float64)
    return 3 * np.sqrt((change**2).mean())


LAYOUTS = [("gpu",), ("gpu", "cpu"), ("cpu", "gpu")]


@pytest.mark.parametrize("model", PROMPTS)
@pytest.mark.parametrize("layout,split", [*((layout, "pipeline") for layout in LAYOUTS), (("gpu", "cpu"), "tensor")],
                         ids=[*("-".join(layout) for layout in LAYOUTS), "tensor"])
def test_greedy_tokens(model, layout, split):
    devices = tuple(gpu() if device == "gpu" else device for device in layout)
    expected, found = answer(model, ("cpu",), "pipeline"), answer(model, devices, split)
    rows = scored(model)
    assert rows["token"].tolist() == expected  # the same steps
    n_same = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
    print(f"{model}, {split} on {', '.join(devices)}: {n_same} of {len(expected)} tokens are the same; near ties are closer than {near_tie(model):.3f}")
    if n_same < len(expected):
        assert margins(rows)[n_same] <= near_tie(model)


@pytest.mark.parametrize("model", PROMPTS)
def test_scores(model):
    """All choices, not only those before the first near tie."""
    expected, found = scored(model), scored(model, device=gpu())
    differs = expected["token"] != found["token"]
    rms = np.sqrt(((margins(expected) - margins(found)).astype(np.float64)**2).mean())
    print(f"{model}: {differs.sum()} of {len(expected)} choices differ; margins by {rms:.4f} rms, {near_tie(model) / 3:.4f} from other steps")
    assert margins(expected)[differs].max(initial=0) <= near_tie(model)

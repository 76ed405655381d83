"""Whether a text is what the model says: teacher-forced, in one process (tests/vectors/engine_tool)."""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "vectors"))
import engine_runs as runs  # noqa: E402

# A chosen token may be so much less likely than the best one, as a logit: three times the rms change that rounding makes to a margin
# (docs/internals/numerics.md).
NEAR_TIE = 0.6


def check_answer(prompt, text, usage, name="smollm2"):
    """Every token was the likeliest one at its place, or nearly so, and usage counts are the real ones."""
    before = runs.prompt_tokens(name, prompt)
    assert usage["prompt_tokens"] == len(before)
    # White space at the end of an answer that was cut off is one token for a tokenizer, and may have been several.
    said = text.rstrip()
    after = runs.tokenize(runs.program("tokenize_tool"), runs.model(name), said.encode(), 0)
    assert -1 <= usage["completion_tokens"] - len(after) <= 1 + len(text) - len(said), (len(after), usage)
    tokens = np.concatenate([before, after]).astype(np.int32)
    rows = runs.run_engine(runs.model(name), [tokens[:-1]], tokens[1:, None])[len(before) - 1:]
    behind = rows["logit"] - rows["picked"][:, 0]
    worst = float(behind.max(initial=0.0))
    print(f"{len(after)} tokens, {(behind > 0).sum()} not the likeliest one, by {worst:.3f} at most")
    at = int(behind.argmax()) if len(behind) > 0 else 0
    assert worst <= NEAR_TIE, f"token {at} of {len(after)}, {after[max(0, at - 4):at + 5]} around it, is {worst:.3f} behind {rows['token'][at]}: {text!r}"
    return worst

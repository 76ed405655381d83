"""Writes data/chat.json: prompts and the models' own greedy answers to some of them, as token ids.

    make_chat.py        (SHOAL_BUILD and SHOAL_TEST_MODELS as in engine_runs.py)

test_splits.py compares splits on this text. A model is rarely in doubt about its own answers, so few of its choices are ties. The
text is kept in the tree, because another processor rounds differently and may write another one.
"""

import json

import engine_runs as runs

CHAT = [
    "Name three large rivers of Europe and describe the course of each of them.",
    "Explain to a child why the sky is blue and the sunset is red.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "How do I bake bread without a machine? Give me numbered steps.",
    "Write a Python function that returns the first n prime numbers and explain it.",
    "What is the difference between a virus and a bacterium?",
    "Give me five tips for learning a foreign language.",
    "Summarize how a bill becomes a law in a parliament.",
    "Describe the water cycle in four paragraphs.",
    "What should I think of before I buy a used bicycle?",
]
PLAIN = [  # for models without a chat template
    "The water cycle begins when the sun heats the surface of the ocean.",
    "Once upon a time, in a small village at the foot of the mountains, there lived",
    "def first_primes(n):\n    \"\"\"Return the first n prime numbers.\"\"\"\n",
    "A bicycle has two wheels, a frame and a chain. To repair a flat tire,",
]
PROMPTS = {"smollm2": CHAT, "gemma3": PLAIN}
N_TOKENS = 512  # of answers, for each model


def conversations(name):
    chosen, n = [], 0
    for prompt in PROMPTS[name]:
        if n >= N_TOKENS:
            break
        answer, figures = runs.run_shoal(runs.model(name), prompt, threads=1, temperature=0)
        tokens = runs.prompt_tokens(name, prompt).tolist()
        assert figures["n_prompt"] == len(tokens)
        chosen.append({"prompt": prompt, "n_prompt": len(tokens), "tokens": tokens + answer})
        n += len(answer)
        print(f"{name}: {len(tokens)} + {len(answer)} tokens", flush=True)
    return chosen


def main():
    everything = {name: conversations(name) for name in PROMPTS}
    lines = [json.dumps(name) + ": [\n" + ",\n".join(map(json.dumps, chosen)) + "\n]" for name, chosen in everything.items()]
    (runs.HERE / "data" / "chat.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

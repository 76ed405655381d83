"""Our tokenizers against Hugging Face's `tokenizers`, token for token, with no difference allowed.

The reference is built from the same vocabulary, with the pre-tokenizer, normalizer and decoder that the family's published
tokenizer.json has. Vocabularies of two real models come from SHOAL_TEST_MODELS; for the other families small ones are trained here and
written as GGUF files that hold nothing but a tokenizer. docs/internals/tokenizers.md says what cannot be compared and why.

Environment: SHOAL_BUILD (build directory, default build/dev), SHOAL_TEST_MODELS (folder, default build/models).
"""

import itertools
import os
import struct
import subprocess
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

import gguf_metadata
import tokenizer_texts as texts

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("SHOAL_BUILD", "build/dev")
MODELS = ROOT / os.environ.get("SHOAL_TEST_MODELS", "build/models")
PARSE_SPECIAL = 2
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def o200k(suffix, digits):
    return (rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{suffix}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{suffix}|{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
             r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def family(stages, last_regex=False, nfc=False, ignore_merges=False):
    return {"pre": lambda: pre_tokenizers.Sequence([s() for s in stages] + [byte_level(last_regex)]), "nfc": nfc,
            "ignore_merges": ignore_merges}


FAMILIES = {
    "gpt-2": family([], True),
    "olmo": family([], True, nfc=True),
    "smollm": family([lambda: pre_tokenizers.Digits(individual_digits=True)], True),
    "command-r": family([lambda: pre_tokenizers.Digits(individual_digits=True)], True, nfc=True),
    "llama-bpe": family([lambda: split(CL100K % r"\p{N}{1,3}")], ignore_merges=True),
    "dbrx": family([lambda: split(CL100K % r"\p{N}{1,3}")]),
    "qwen2": family([lambda: split(CL100K % r"\p{N}")], nfc=True),
    "stablelm2": family([lambda: split(CL100K % r"\p{N}")]),
    "qwen35": family([lambda: split(QWEN35)], nfc=True),
    "gpt-4o": family([lambda: split(o200k(CONTRACTION + "?", r"\p{N}{1,3}"))]),
    "tekken": family([lambda: split(o200k("", r"\p{N}"))], ignore_merges=True),
    "deepseek-v3": family([lambda: split(r"\p{N}{1,3}"), lambda: split("[一-龥\u3040-ゟ゠-ヿ]+"), lambda: split(DEEPSEEK3)]),
    "deepseek-coder": family([lambda: split(r"[\r\n]"), lambda: split(r"\s?\p{L}+"), lambda: split(r"\s?\p{P}+"),
                              lambda: split("[一-龥ࠀ-一가-\ud7ff]+"), lambda: pre_tokenizers.Digits(individual_digits=True)]),
    "falcon": family([lambda: split(r"[\p{P}\$\+<=>\^~\|`]+"), lambda: byte_level_regex(), lambda: split("[0-9][0-9][0-9]")]),
    "default": family([lambda: split(r"[\p{P}\$\+<=>\^~\|]+"), lambda: byte_level_regex(), lambda: split(r"\p{N}+"),
                       lambda: split("[0-9][0-9][0-9]")]),
}
SPECIALS = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
USERS = ["<tool_call>", "\n\n<x>", "<日本>"]


def byte_level_regex():
    """ByteLevel's own expression as a split of its own, since in these families other splits follow it."""
    return split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


# --- the two sides

def ours(path, strings, flags=0):
    """Token ids and decoded text of each byte string, by our program."""
    tool = BUILD / "tests" / "vectors" / "tokenize_tool"
    assert tool.exists(), f"{tool} is not built (SHOAL_BUILD={BUILD})"
    stdin = b"".join(struct.pack("<IB", len(s), flags) + s for s in strings)
    done = subprocess.run([tool, path], input=stdin, stdout=subprocess.PIPE, check=True)
    out, at, result = done.stdout, 0, []
    for _ in strings:
        (n,) = struct.unpack_from("<I", out, at)
        ids = np.frombuffer(out, "<i4", n, at + 4).tolist()
        at += 4 + 4 * n
        (n,) = struct.unpack_from("<I", out, at)
        result.append((ids, out[at + 4:at + 4 + n]))
        at += 4 + n
    assert at == len(out)
    return result


def compare(path, reference, strings, flags=0, decode=True):
    reference.encode_special_tokens = flags & PARSE_SPECIAL == 0
    decoded = [s.decode("utf-8", "replace") for s in strings]
    expected = reference.encode_batch_fast(decoded, add_special_tokens=False)
    n_differences = 0
    for text, want, (ids, back) in zip(decoded, expected, ours(path, strings, flags)):
        if ids != want.ids:
            n_differences += 1
            at = next((i for i, (a, b) in enumerate(zip(ids, want.ids)) if a != b), min(len(ids), len(want.ids)))
            if n_differences <= 5:
                print(f"{text[:200]!r}: at token {at} ours {ids[at - 2:at + 8]} reference {want.ids[at - 2:at + 8]}",
                      [reference.id_to_token(i) for i in want.ids[max(at - 2, 0):at + 8]],
                      [reference.id_to_token(i) for i in ids[max(at - 2, 0):at + 8]])
        elif decode:
            assert back.decode("utf-8") == reference.decode(want.ids, skip_special_tokens=False)
    assert n_differences == 0, f"{n_differences} of {len(strings)} strings differ"


def with_specials(strings, specials):
    """Special tokens written into the text, whole and broken."""
    rng = texts.random.Random(3)
    out = []
    for s in strings:
        for _ in range(rng.randint(1, 3)):
            special = rng.choice(specials).encode()
            if rng.randrange(4) == 0:
                special = special[:rng.randint(1, len(special))]
            at = rng.randint(0, len(s))
            s = s[:at] + special + s[at:]
        out.append(s)
    return out


def compare_all(path, reference, specials, random_strings, documents):
    compare(path, reference, documents)
    compare(path, reference, random_strings, decode=False)
    marked = with_specials(random_strings[:5000], specials)
    compare(path, reference, marked)
    compare(path, reference, marked, PARSE_SPECIAL)


# --- reference tokenizers

def byte_level_reference(name, vocab, merges, added):
    kind = FAMILIES[name]
    reference = Tokenizer(BPE(vocab, merges, ignore_merges=kind["ignore_merges"]))
    reference.pre_tokenizer = kind["pre"]()
    reference.decoder = decoders.ByteLevel()
    if kind["nfc"]:
        reference.normalizer = normalizers.NFC()
    add_tokens(reference, added)
    return reference


def add_tokens(reference, added):
    """In this order, and as many at once as are of a kind: each call makes a new automaton, and a vocabulary may have thousands."""
    for is_user, run in itertools.groupby(added, key=lambda item: item[1] == USER):
        tokens = [AddedToken(text, normalized=False, special=not is_user) for text, _ in run]
        (reference.add_tokens if is_user else reference.add_special_tokens)(tokens)


def merges_from_ranks(vocab, ranks):
    """All ways to make a token of two tokens, in the order of the token's rank and then of the left part's length: as transformers
    converts SentencePiece vocabularies (generate_merges). Control and byte tokens are left out: text must not become them."""
    found = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            if token[:i] in ranks and token[i:] in ranks:
                found.append((rank, i, token))
    found.sort()
    return [(token[:i], token[i:]) for _, i, token in found]


def spm_reference(tokens, scores, types, prefix):
    """Of a SentencePiece BPE vocabulary. Returns also the added tokens' texts."""
    names = [t.replace(" ", "▁") if type_ == USER else t for t, type_ in zip(tokens, types)]
    vocab = {t: i for i, t in enumerate(names)}
    order = sorted((i for i, type_ in enumerate(types) if type_ in (NORMAL, USER)), key=lambda i: (types[i] != USER, -scores[i] if types[i] != USER else 0, i))
    merges = merges_from_ranks(vocab, {names[i]: rank for rank, i in enumerate(order)})
    unknown = next(t for t, type_ in zip(names, types) if t == "<unk>")
    reference = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    reference.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "▁")])
    steps = [decoders.Strip(" ", 1, 0)] if prefix else []
    reference.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + steps)
    added = [(t, type_) for t, type_ in zip(names, types) if type_ in (UNKNOWN, CONTROL, USER)]
    add_tokens(reference, added)
    return reference, [t for t, _ in added]


# --- files

def model_tokenizer(name):
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"no model {path} (SHOAL_TEST_MODELS)")
    found = gguf_metadata.read(path)
    return path, lambda key: found.get("tokenizer.ggml." + key)


def write_tokenizer(path, model, pre, tokens, types, merges=None, scores=None, prefix=None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges([" ".join(m) for m in merges])
    if scores is not None:
        writer.add_token_scores(scores)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.fixture(scope="session")
def documents():
    return texts.mixed_text(1, 1_100_000)


@pytest.fixture(scope="session")
def strings():
    return texts.random_strings(2, 100_000)


@pytest.fixture(scope="session")
def code_points():
    return texts.every_code_point()


def train(pre, nfc, n_tokens):
    """A vocabulary and merges on a part of the mixed text."""
    reference = Tokenizer(BPE())
    reference.pre_tokenizer = pre
    if nfc:
        reference.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    reference.train_from_iterator((d.decode("utf-8", "replace") for d in texts.mixed_text(7, 400_000)), trainer)
    return vocab_and_merges(reference)


def vocab_and_merges(reference):
    import json
    model = json.loads(reference.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return model["vocab"], merges


@pytest.fixture(scope="session")
def loose_vocab():
    """Its tokens cross the borders of words (only line ends and every 40th character end a piece), so that a wrong cut changes the tokens."""
    return train(pre_tokenizers.Sequence([split(r"[^\n]{1,40}\n*"), byte_level(False)]), False, 8000)


def trained_tokenizer(tmp_path, name, vocab, merges):
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda item: item[1])]
    added = [(t, CONTROL) for t in SPECIALS] + [(t, USER) for t in USERS]
    types = [NORMAL] * len(tokens) + [type_ for _, type_ in added]
    path = tmp_path / f"{name}.gguf"
    write_tokenizer(path, "gpt2", name, tokens + [t for t, _ in added], types, merges=merges)
    return path, byte_level_reference(name, vocab, merges, added)


# --- tests

def test_smollm2(strings, documents, code_points):
    path, read = model_tokenizer("smollm2.gguf")
    tokens, types = read("tokens"), read("token_type")
    merges = [tuple(m.split(" ")) for m in read("merges")]
    added = [(t, type_) for t, type_ in zip(tokens, types) if type_ in (UNKNOWN, CONTROL, USER)]
    reference = byte_level_reference(read("pre"), {t: i for i, t in enumerate(tokens)}, merges, added)
    compare_all(path, reference, [t for t, _ in added], strings, documents)
    compare(path, reference, code_points)


def test_gemma3(strings, documents):
    path, read = model_tokenizer("gemma3.gguf")
    reference, added = spm_reference(read("tokens"), read("scores"), read("token_type"), read("add_space_prefix"))
    compare_all(path, reference, added, strings, documents)


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2"])
def test_trained(name, tmp_path, strings, documents, code_points):
    vocab, merges = train(FAMILIES[name]["pre"](), FAMILIES[name]["nfc"], 8000)
    path, reference = trained_tokenizer(tmp_path, name, vocab, merges)
    compare_all(path, reference, SPECIALS + USERS, strings, documents)
    compare(path, reference, code_points)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_pre_tokenizer(name, tmp_path, strings, documents, loose_vocab):
    path, reference = trained_tokenizer(tmp_path, name, *loose_vocab)
    compare_all(path, reference, SPECIALS + USERS, strings[:10_000], documents[1:4])


def test_sentencepiece_with_prefix(tmp_path, strings, documents):
    """The Llama-2 way: a space before each text, unknown characters as bytes, tokens such as <0x0A> for them."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator((d.decode("utf-8", "replace") for d in texts.mixed_text(7, 400_000)),
                                trainers.BpeTrainer(vocab_size=8000, limit_alphabet=600, show_progress=False))
    vocab, merges = vocab_and_merges(trained)
    made = ["".join(m) for m in merges]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokens = [t for t in made + sorted(set(vocab) - set(made)) if t not in first]  # the text has some of them written out
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(tokens)
    tokens = first + tokens
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    path = tmp_path / "llama.gguf"
    write_tokenizer(path, "llama", "default", tokens, types, scores=scores, prefix=True)
    reference, added = spm_reference(tokens, scores, types, True)
    compare_all(path, reference, added, strings, documents)


def test_sentencepiece_without_byte_tokens(tmp_path, strings):
    """Characters without a token are the unknown token, one for a run of them."""
    tokens = ["<unk>", "<s>", "</s>", "▁a", "th", "the", "▁the", "in", "ing"] + sorted("▁abcdefghijklmnopqrstuvwxyz.,")
    scores = [0.0] * 3 + [-float(i) for i in range(len(tokens) - 3)]
    types = [UNKNOWN, CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 3)
    path = tmp_path / "tiny.gguf"
    write_tokenizer(path, "llama", "default", tokens, types, scores=scores, prefix=False)
    reference, added = spm_reference(tokens, scores, types, False)
    compare(path, reference, strings[:10_000])

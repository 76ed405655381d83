"""The official OpenAI client against a real cluster: two nodes, SmolLM2 split between them by tensors."""

import pathlib
import sys

import pytest

openai = pytest.importorskip("openai")
tokenizers = pytest.importorskip("tokenizers")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "net"))

from cluster import Cluster, need_model

QUESTION = [{"role": "user", "content": "Name three rivers in Europe."}]


@pytest.fixture(scope="module")
def cluster():
    need_model()
    c = Cluster(2, "--split", "tensor")
    yield c
    assert c.stop() == 0


@pytest.fixture(scope="module", params=[0, 1], ids=["head", "other node"])
def client(cluster, request):
    return openai.OpenAI(base_url=cluster.apis[request.param] + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def count_tokens():
    """How many tokens a text has, according to another implementation."""
    from gguf import GGUFReader

    fields = GGUFReader(str(need_model())).fields

    def strings(key):
        field = fields[key]
        return [bytes(field.parts[i]).decode() for i in field.data]

    vocab = {text: i for i, text in enumerate(strings("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return lambda text: len(tokenizer.encode(text).ids)


def ask(client, messages=QUESTION, **more):
    return client.chat.completions.create(model="smollm2", messages=messages, **({"max_tokens": 48} | more))


def test_models(client):
    assert [m.id for m in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").object == "model"


def test_chat_and_usage(client, count_tokens):
    answer = ask(client, temperature=0)
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )
    text = answer.choices[0].message.content
    assert text and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == count_tokens(prompt)
    ends = 1 if answer.choices[0].finish_reason == "stop" else 0
    assert answer.usage.completion_tokens - count_tokens(text) in (0, ends)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_gives_the_same_text(client):
    whole = ask(client, temperature=0)
    chunks = list(ask(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert len({c.id for c in chunks}) == 1 and len(chunks) > 10
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]


def test_max_tokens(client):
    answer = ask(client, temperature=0, max_tokens=5)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5


def test_stop(client):
    whole = ask(client, temperature=0).choices[0].message.content
    word = whole.split()[4]
    answer = ask(client, temperature=0, stop=word)
    assert answer.choices[0].message.content == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"


def test_same_seed_same_text(client):
    first, second = (ask(client, temperature=1.2, seed=7).choices[0].message.content for _ in range(2))
    assert first == second
    others = {ask(client, temperature=1.2, seed=seed).choices[0].message.content for seed in (1, 2, 3)}
    assert len(others | {first}) > 1


def test_settings_change_the_choice(client):
    greedy = ask(client, temperature=0).choices[0].message.content
    assert ask(client, temperature=2, seed=1, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert ask(client, temperature=2, seed=1, top_p=0).choices[0].message.content == greedy


def test_a_conversation_reuses_its_prefix(client):
    first = ask(client, temperature=0)
    messages = QUESTION + [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And one more?"},
    ]
    second = ask(client, messages=messages, temperature=0)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert e.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as e:
        ask(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert e.value.code == "context_length_exceeded" and "1024" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        ask(client, temperature="hot")
    assert e.value.param == "temperature"
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", cast_to=object, body="{not json", options={"headers": {"Content-Type": "application/json"}})

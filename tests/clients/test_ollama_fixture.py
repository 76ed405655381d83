"""Ollama's API over a scripted model, through its official client and below it.

What the scripts mean is in fixture/scripted.h and fixture/scripted_files.h. One token is one byte.
"""

import asyncio
import datetime
import json
import re
import socket
import time

import pytest

ollama = pytest.importorskip("ollama")

from ollama import ChatResponse, GenerateResponse, ListResponse, ProcessResponse, ShowResponse

from fixture_server import Server, chat, find_program

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
COUNTS = ("prompt_eval_count", "eval_count")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def server():
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    s = Server(program)
    yield s
    assert s.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url, timeout=20)


def ask(client, script, **more):
    return client.chat(**chat(script, **more))


def said(chunks):
    return "".join(c.message.content or "" for c in chunks)


def check_object(value, key):
    """One object of a stream or a whole answer, strictly."""
    assert TIME.fullmatch(value["created_at"]), value
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    assert value["created_at"][:15] == now[:15] or value["created_at"] < now
    if key == "message":
        assert value["message"]["role"] == "assistant"
        assert type(value["message"]["content"]) is str
        ChatResponse.model_validate(value, strict=True)
    else:
        assert type(value["response"]) is str
        GenerateResponse.model_validate(value, strict=True)
    assert type(value["done"]) is bool
    if not value["done"]:
        assert not set(TIMES + COUNTS + ("done_reason",)) & set(value)
    elif value["done_reason"] not in ("load", "unload"):
        for name in TIMES + COUNTS:
            assert type(value[name]) is int, name
        assert value["done_reason"] in ("stop", "length")


def post(server, path, body, key="message"):
    """Status and the objects of the answer."""
    status, headers, text = server.request("POST", path, body)
    if status != 200:
        value = json.loads(text)
        assert list(value) == ["error"] and type(value["error"]) is str
        return status, value
    if headers["content-type"] == "application/json":
        values = [json.loads(text)]
    else:
        assert headers["content-type"] == "application/x-ndjson"
        assert text.endswith("\n")
        values = [json.loads(line) for line in text[:-1].split("\n")]  # an empty line fails
        assert all(not v["done"] for v in values[:-1])
    for value in values:
        check_object(value, key)
    assert values[-1]["done"]
    return status, values


# what there is


def test_root_and_version(server):
    status, headers, text = server.request("GET", "/")
    assert (status, text) == (200, "Ollama is running")
    assert headers["content-type"].startswith("text/plain")
    status, _, text = server.request("HEAD", "/")
    assert (status, text) == (200, "")
    version = json.loads(server.request("GET", "/api/version")[2])["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
    assert server.request("HEAD", "/api/version")[0] == 200


def test_tags(client, server):
    models = client.list().models
    assert [m.model for m in models] == [
        "tiny:latest",
        "org/tiny:latest",
        "loading:latest",
        "plain:latest",
    ]
    assert models[0].size == 90000000 and models[0].digest.startswith("0123456789abcdef")
    assert models[0].modified_at.timestamp() == 1700000000
    details = models[0].details
    assert (details.format, details.family, details.families) == ("gguf", "llama", ["llama"])
    assert (details.parameter_size, details.quantization_level) == ("135.00M", "Q4_0")
    for m in json.loads(server.request("GET", "/api/tags")[2])["models"]:
        assert m["name"] == m["model"] and TIME.fullmatch(m["modified_at"])
        assert type(m["size"]) is int and m["details"]["parent_model"] == ""
        ListResponse.Model.model_validate_json(json.dumps(m))


def test_ps(client, server):
    models = client.ps().models
    assert [m.model for m in models] == ["tiny:latest", "org/tiny:latest", "plain:latest"]
    assert models[0].name == "tiny:latest" and models[0].context_length == 8192
    assert (models[0].size, models[0].size_vram) == (90000000, 60000000)
    assert models[0].expires_at > datetime.datetime.now(datetime.timezone.utc)
    for m in json.loads(server.request("GET", "/api/ps")[2])["models"]:
        assert TIME.fullmatch(m["expires_at"])
        ProcessResponse.Model.model_validate_json(json.dumps(m))


def test_show(client, server):
    m = client.show("tiny")
    assert m.modelinfo == {
        "general.architecture": "llama",
        "general.parameter_count": 135000000,
        "llama.context_length": 8192,
    }
    assert m.capabilities == ["completion", "tools", "thinking"]
    assert "add_generation_prompt" in m.template and m.modelfile.startswith("FROM tiny\n")
    assert "num_ctx" in m.parameters and m.details.quantization_level == "Q4_0"
    assert m.modified_at.timestamp() == 1700000000
    assert client.show("plain").capabilities == ["completion"]
    for body in ({"name": "tiny"}, {"model": "org/tiny:latest", "verbose": True}):
        status, _, text = server.request("POST", "/api/show", body)
        assert status == 200
        ShowResponse.model_validate_json(text)
    with pytest.raises(ollama.ResponseError) as e:
        client.show("nothing")
    assert (e.value.status_code, e.value.error) == (404, "model 'nothing' not found")
    assert server.request("POST", "/api/show", {})[0] == 400
    assert server.request("POST", "/api/show", b"")[0] == 400
    assert server.request("POST", "/api/show", b"[1]")[0] == 400
    assert server.request("POST", "/api/show", b"x" * 70000)[0] == 413


# chat


def test_chat(client, server):
    answer = ask(client, "say Hällo, wörld 🌊!")
    assert answer.message.content == "Hällo, wörld 🌊!" and answer.message.role == "assistant"
    assert answer.done and answer.done_reason == "stop" and answer.model == "tiny"
    assert answer.prompt_eval_count == len("say Hällo, wörld 🌊!".encode()) + len("user\n") + len(
        "assistant\n"
    ) + 4
    assert answer.eval_count == len("Hällo, wörld 🌊!".encode()) + 1
    assert (answer.prompt_eval_duration, answer.eval_duration) == (2000000, 3000000)
    assert answer.load_duration == 0 and 0 < answer.total_duration < 20e9
    assert answer.message.thinking is None and answer.message.tool_calls is None
    _, values = post(server, "/api/chat", chat("say hi", stream=False))
    assert len(values) == 1 and values[0]["message"] == {"role": "assistant", "content": "hi"}


def test_stream_is_the_default(client, server):
    text = "say " + "grün 🌊 " * 40
    chunks = list(ask(client, text, stream=True))
    assert said(chunks) == text[4:] and len(chunks) > 10
    assert [c.done for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].done_reason == "stop" and chunks[-1].eval_count == len(text[4:].encode()) + 1
    assert all(c.model == "tiny" for c in chunks)
    status, values = post(server, "/api/chat", chat(text))
    assert status == 200 and len(values) > 10
    assert "".join(v["message"]["content"] for v in values) == text[4:]
    assert values[-1]["message"] == {"role": "assistant", "content": ""}
    times = [v["created_at"] for v in values]
    assert times == sorted(times)


def test_async_client(server):
    async def run():
        c = ollama.AsyncClient(host=server.url)
        whole = await c.chat(**chat("say async"))
        parts = [p async for p in await c.chat(**chat("say async", stream=True))]
        text = await c.generate("tiny", "say more")
        pieces = [p.response async for p in await c.generate("tiny", "say more", stream=True)]
        pulled = [p.status async for p in await c.pull("new", stream=True)]
        models = await c.list()
        await c.show("tiny")
        return whole.message.content, said(parts), text.response, "".join(pieces), pulled[-1], len(
            models.models
        )

    assert asyncio.run(run()) == ("async", "async", "more", "more", "success", 4)


def test_lines_that_python_would_split(client, server):
    """httpx splits lines where str.splitlines does: at U+0085, U+2028 and U+2029, too."""
    text = "a\u2028b\u2029c\u0085d\u000be\u000cf\u001cg\nh\r\ni é†  \u20ac"
    assert said(ask(client, "say " + text, stream=True)) == text
    assert ask(client, "say " + text).message.content == text
    assert "".join(p.response for p in client.generate("tiny", "say " + text, stream=True)) == text


def test_names(client, server):
    for name in ("tiny", "tiny:latest", "org/tiny", "org/tiny:latest"):
        assert ask(client, "say x", model=name).model == name
    body = chat("say x", stream=False)
    body["name"] = body.pop("model")
    assert post(server, "/api/chat", body)[0] == 200
    for name in ("tiny:other", "tin", "TINY!", "nothing", ":latest", "x" * 9000):
        with pytest.raises(ollama.ResponseError) as e:
            ask(client, "say x", model=name)
        assert e.value.status_code == 404 and "not found" in e.value.error
    # nowhere else
    assert server.request("POST", "/v1/chat/completions", chat("say x", model="tiny:latest"))[0] == 404
    status, value = post(server, "/api/chat", {"messages": []})
    assert (status, value["error"]) == (400, "model is required")
    assert post(server, "/api/chat", {"model": "", "messages": []})[0] == 400
    assert post(server, "/api/chat", {"model": 5, "messages": []})[0] == 400


def test_content_type_is_ignored(server):
    body = json.dumps(chat("say curl", stream=False)).encode()
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        status, _, text = server.request("POST", "/api/chat", body, {"Content-Type": kind})
        assert status == 200 and json.loads(text)["message"]["content"] == "curl"


def test_options(client):
    def sampling(**options):
        return json.loads(ask(client, "sampling", options=options).message.content)

    s = sampling()
    assert (s["temperature"], s["top_k"], s["top_p"], s["min_p"]) == (0.8, 40, 0.9, 0)
    assert (s["repetition_penalty"], s["presence_penalty"], s["frequency_penalty"]) == (1, 0, 0)
    assert s["n_max"] == 8192 - s["n_prompt"]
    s = sampling(
        temperature=0.25,
        top_k=7,
        top_p=0.5,
        min_p=0.125,
        repeat_penalty=1.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=42,
        num_predict=999,
        num_ctx=4096,
        num_batch=1,
        num_gpu=99,
        mirostat=0,
        typical_p=1.0,
        something_new=True,
    )
    assert (s["temperature"], s["top_k"], s["top_p"], s["min_p"]) == (0.25, 7, 0.5, 0.125)
    assert (s["repetition_penalty"], s["presence_penalty"]) == (1.25, 0.5)
    assert (s["frequency_penalty"], s["seed"], s["n_max"]) == (-0.5, 42, 999)
    assert sampling(temperature=0)["temperature"] == 0
    assert sampling(temperature=3.5)["temperature"] == 3.5
    assert sampling(top_k=0)["top_k"] == 0
    for n in (-1, -2, 0):
        assert sampling(num_predict=n)["n_max"] > 7000
    assert sampling(num_predict=700.0, seed=3.0)["n_max"] == 700
    assert sampling(seed=-1)["seed"] != sampling(seed=-1)["seed"]
    s = sampling(repeat_last_n=0, repeat_penalty=1.5, presence_penalty=1)
    assert (s["repetition_penalty"], s["presence_penalty"]) == (1, 0)


def test_options_class(client):
    answer = ask(client, "say abcdef", options=ollama.Options(num_predict=3, temperature=0.1))
    assert (answer.message.content, answer.done_reason, answer.eval_count) == ("abc", "length", 3)
    chunks = list(ask(client, "say abcdef", options={"num_predict": 3}, stream=True))
    assert said(chunks) == "abc" and chunks[-1].done_reason == "length"


def test_stop(client):
    for stop in (["4"], ["zz", "4", "45"]):
        answer = ask(client, "say 123456", options={"stop": stop})
        assert (answer.message.content, answer.done_reason) == ("123", "stop")
    chunks = list(ask(client, "say one STOP two", options={"stop": ["STOP"]}, stream=True))
    assert said(chunks) == "one " and chunks[-1].done_reason == "stop"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_k": 1.5},
        {"num_predict": -3},
        {"num_predict": "all"},
        {"stop": [""]},
        {"stop": [7]},
        {"seed": "x"},
        {"mirostat": 2},
        {"typical_p": 0.5},
        {"repeat_last_n": -2},
        ["temperature"],
    ],
)
def test_options_refused(server, options):
    status, value = post(server, "/api/chat", chat("say x", options=options))
    assert status == 400 and "options" in value["error"]


def test_format(client, server):
    def grammar(**more):
        said = json.loads(ask(client, "sampling", **more).message.content)
        return said["grammar_kind"], said["grammar"]

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert grammar() == ("none", "") and grammar(format="") == ("none", "")
    assert grammar(format="json") == ("json_object", "")
    kind, text = grammar(format=schema)
    assert kind == "json_schema" and json.loads(text) == schema
    for bad in ("xml", 5, ["json"], True):
        status, value = post(server, "/api/chat", chat("say x", format=bad))
        assert status == 400 and "JSON schema" in value["error"]


def test_think_reaches_the_template(client, server):
    def prompt(think):
        return json.loads(ask(client, "prompt", think=think).message.content)

    assert "thinking" not in prompt(None)
    assert prompt(True).startswith("{257}thinking\nTrue {258}")
    assert prompt(False).startswith("{257}thinking\nFalse {258}")
    for level in ("low", "medium", "high"):
        assert prompt(level).startswith(f"{{257}}thinking\nTrue {level}{{258}}")
    for bad in ("deep", 1, []):
        assert post(server, "/api/chat", chat("say x", think=bad))[0] == 400


def test_thinking(client, server):
    script = "say <think>well, well</think>the answer"
    answer = ask(client, script)
    assert answer.message.thinking.strip() == "well, well"
    assert answer.message.content.strip() == "the answer"
    chunks = list(ask(client, script, stream=True))
    assert "".join(c.message.thinking or "" for c in chunks).strip() == "well, well"
    assert said(chunks).strip() == "the answer"
    _, values = post(server, "/api/chat", chat(script))
    assert not any(v["message"].get("thinking") and v["message"]["content"] for v in values)
    answer = client.generate("tiny", script)
    assert (answer.thinking.strip(), answer.response.strip()) == ("well, well", "the answer")


def test_tools(client, server):
    call = '{"name": "weather", "arguments": {"place": "Ry\\u00f6 \\"x\\"",\n "days": [1, 2.5]}}'
    script = f"say <tool_call>\n{call}\n</tool_call>"
    wanted = {"place": 'Ryö "x"', "days": [1, 2.5]}
    answer = ask(client, script, tools=[TOOL])
    assert answer.message.content.strip() == ""
    (one,) = answer.message.tool_calls
    assert (one.function.name, one.function.arguments) == ("weather", wanted)
    assert answer.done_reason == "stop"
    chunks = list(ask(client, script, tools=[TOOL], stream=True))
    calls = [c for chunk in chunks for c in chunk.message.tool_calls or []]
    assert [(c.function.name, c.function.arguments) for c in calls] == [("weather", wanted)]
    assert said(chunks).strip() == ""
    _, values = post(server, "/api/chat", chat(script, tools=[TOOL]))
    raw = [v["message"]["tool_calls"][0] for v in values if "tool_calls" in v["message"]]
    assert len(raw) == 1 and raw[0]["id"].startswith("call_")
    assert raw[0]["function"]["index"] == 0 and type(raw[0]["function"]["arguments"]) is dict

    two = ask(client, script + script[4:], tools=[TOOL]).message.tool_calls
    assert [t.function.name for t in two] == ["weather", "weather"]
    broken = 'say <tool_call>\n{"name": "weather", "argum'
    for stream in (False, True):
        _, values = post(server, "/api/chat", chat(broken, tools=[TOOL], stream=stream))
        assert not any("tool_calls" in v["message"] for v in values)
        assert "".join(v["message"]["content"] for v in values) == broken[4:]


def test_tools_from_a_function(client):
    def weather(place: str) -> str:
        """The weather.

        Args:
          place: where
        """

    script = 'say <tool_call>\n{"name": "weather", "arguments": {"place": "x"}}\n</tool_call>'
    assert ask(client, script, tools=[weather]).message.tool_calls[0].function.name == "weather"


def test_messages_of_a_dialogue_with_tools(client):
    answer = client.chat(
        model="tiny",
        messages=[
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "x"}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "rain"},
            {"role": "user", "content": "prompt"},
        ],
    )
    text = json.loads(answer.message.content)
    assert "{257}system\nbe kind{258}" in text and "{257}tool weather\nrain{258}" in text
    assert '"arguments": {"place": "x"}' in text


def test_users_cannot_write_control_tokens(client):
    text = json.loads(ask(client, "prompt <|im_end|>").message.content)
    assert text.count("{258}") == 1 and "<|im_end|>" in text


def test_logprobs(client, server):
    answer = ask(client, "say ab", logprobs=True, top_logprobs=2)
    assert [p.token for p in answer.logprobs][:2] == ["a", "b"]
    assert answer.logprobs[0].logprob == pytest.approx(-0.6931472)
    assert [t.token for t in answer.logprobs[0].top_logprobs] == ["a", "b"]
    chunks = list(ask(client, "say abcdefgh", logprobs=True, stream=True))
    tokens = [p.token for c in chunks for p in c.logprobs or []]
    assert "".join(tokens).startswith("abcdefgh")
    assert len(tokens) + 1 == chunks[-1].eval_count  # the end of the turn is no text
    assert ask(client, "say ab").logprobs is None
    answer = client.generate("tiny", "say ab", logprobs=True, top_logprobs=1)
    assert [p.token for p in answer.logprobs][:2] == ["a", "b"]
    assert post(server, "/api/chat", chat("say x", logprobs=True, top_logprobs=21))[0] == 400
    assert post(server, "/api/chat", chat("say x", logprobs="yes"))[0] == 400
    assert ask(client, "say ab", top_logprobs=2).logprobs is None


def test_load_and_unload(client, server):
    for stream in (False, True):
        for path, key, body in (
            ("/api/chat", "message", {"messages": []}),
            ("/api/chat", "message", {}),
            ("/api/generate", "response", {"prompt": ""}),
            ("/api/generate", "response", {}),
        ):
            body = {"model": "tiny", "stream": stream, **body}
            _, values = post(server, path, body, key)
            assert len(values) == 1 and values[0]["done_reason"] == "load"
            for zero in (0, 0.0, "0", "0s", "0m0s"):
                _, values = post(server, path, {**body, "keep_alive": zero}, key)
                assert len(values) == 1 and values[0]["done_reason"] == "unload"
    assert client.generate("tiny").done_reason == "load"
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert client.chat("tiny").done_reason == "load"
    assert post(server, "/api/generate", {"model": "nothing"})[0] == 404
    assert post(server, "/api/generate", {"model": "loading"})[0] == 503


def test_keep_alive(client, server):
    for good in (300, 0.5, -1, "5m", "-1m", "1h30m", "1.5h", "250ms", "10µs", "-1", "24h0m0s"):
        assert ask(client, "say x", keep_alive=good).message.content == "x"
    for bad in ("soon", "5 m", "", "-", "1h30", "infs", "0x10s", "5mm", "..s", True, []):
        assert post(server, "/api/chat", chat("say x", keep_alive=bad))[0] == 400, bad


# generate


def test_generate(client, server):
    answer = client.generate("tiny", "say hello")
    assert (answer.response, answer.done, answer.done_reason) == ("hello", True, "stop")
    assert answer.eval_count == 6 and answer.eval_duration == 3000000
    chunks = list(client.generate("tiny", "say hello there, you", stream=True))
    assert "".join(c.response for c in chunks) == "hello there, you" and len(chunks) > 3
    assert chunks[-1].done and not chunks[0].done
    body = {"model": "tiny", "prompt": "say hi"}
    _, values = post(server, "/api/generate", body, "response")
    assert values[-1]["response"] == "" and "message" not in values[0]
    _, values = post(server, "/api/generate", {**body, "stream": False}, "response")
    assert len(values) == 1 and values[0]["response"] == "hi"
    assert client.generate("tiny", "say x", format="json", options={"seed": 1}).response == "x"


def test_generate_system(client):
    text = json.loads(client.generate("tiny", "prompt", system="be kind").response)
    assert text == "{257}system\nbe kind{258}\n{257}user\nprompt{258}\n{257}assistant\n"
    text = json.loads(client.generate("tiny", "prompt", think=True).response)
    assert text.startswith("{257}thinking\nTrue")


def test_generate_raw(client, server):
    text = json.loads(client.generate("tiny", "prompt [x]", raw=True).response)
    assert text == "prompt [x]"
    answer = client.generate("tiny", "<|im_start|>user\nprompt<|im_end|>", raw=True)
    assert json.loads(answer.response) == "{257}user\nprompt{258}"
    assert answer.context is None
    # Nobody but the model's template gives markers a meaning.
    assert client.generate("tiny", "say <think>x", raw=True).response == "<think>x"
    for more in ({"system": "x"}, {"context": [1]}, {"template": "{{ .Prompt }}"}):
        body = {"model": "tiny", "prompt": "say x", "raw": True, **more}
        assert post(server, "/api/generate", body, "response")[0] == 400


def test_generate_without_a_template(client, server):
    assert client.generate("plain", "say as it is").response == "as it is"
    assert json.loads(client.generate("plain", "prompt").response) == "prompt"
    body = {"model": "plain", "prompt": "say x", "system": "be kind"}
    status, value = post(server, "/api/generate", body, "response")
    assert status == 400 and "chat template" in value["error"]
    with pytest.raises(ollama.ResponseError) as e:
        ask(client, "say x", model="plain")
    assert e.value.status_code == 400


def test_generate_context(client, server):
    first = client.generate("tiny", "say one")
    prompt = "{257}user\nsay one{258}\n{257}assistant\n"
    tokens = [257, *b"user\nsay one", 258, *b"\n", 257, *b"assistant\n", *b"one", 258]
    assert first.context == tokens
    last = list(client.generate("tiny", "prompt", context=first.context, stream=True))
    text = json.loads("".join(c.response for c in last))
    assert text == prompt + "one{258}{257}user\nprompt{258}\n{257}assistant\n"
    assert last[-1].context[: len(tokens)] == tokens
    assert all(c.context is None for c in last[:-1])
    assert client.generate("tiny", "say x", context=[]).response == "x"
    for bad in ([259], [-1], ["a"], "text", [1.5]):
        body = {"model": "tiny", "prompt": "say x", "context": bad}
        assert post(server, "/api/generate", body, "response")[0] == 400, bad
    body = {"model": "tiny", "prompt": "say x", "context": [97] * 8200}
    status, value = post(server, "/api/generate", body, "response")
    assert status == 400 and "8192" in value["error"]


def test_generate_refused(server):
    for more in (
        {"suffix": "x"},
        {"template": "{{ .Prompt }}"},
        {"images": ["aGk="]},
        {"prompt": 5},
        {"prompt": "a\0b"},
        {"stream": "yes"},
        {"raw": 1},
        {"system": []},
    ):
        body = {"model": "tiny", "prompt": "say x", **more}
        assert post(server, "/api/generate", body, "response")[0] == 400, more
    body = {"model": "tiny", "prompt": "say x", "suffix": "", "template": "", "images": []}
    assert post(server, "/api/generate", body, "response")[0] == 200


def test_images_are_refused(client):
    with pytest.raises(ollama.ResponseError) as e:
        client.chat("tiny", [{"role": "user", "content": "say x", "images": [b"\x89PNG"]}])
    assert e.value.status_code == 400 and "images" in e.value.error
    with pytest.raises(ollama.ResponseError) as e:
        client.generate("tiny", "say x", images=[b"\x89PNG"])
    assert e.value.status_code == 400


# errors


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"{}", b'{"model":"tiny","messages":5}', b'{"model":"tiny","messages":[5]}'],
)
def test_bad_bodies(server, body):
    for path in ("/api/chat", "/api/generate"):
        if path == "/api/generate" and b"messages" in body:
            continue
        status, _, text = server.request("POST", path, body)
        assert status == 400 and type(json.loads(text)["error"]) is str


@pytest.mark.parametrize(
    "script,status", [("busy", 429), ("unavailable", 503), ("fail 0", 503), ("giveup 0", 503)]
)
def test_errors_have_a_status_before_the_first_piece(client, server, script, status):
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as e:
            answer = ask(client, script, stream=stream)
            list(answer)
        assert e.value.status_code == status and e.value.error
        code, headers, _ = server.request("POST", "/api/chat", chat(script, stream=stream))
        assert code == status and "retry-after" in headers


def test_errors_within_a_stream(client, server):
    text = ""
    with pytest.raises(ollama.ResponseError) as e:
        for part in ask(client, "fail 5", stream=True):
            text += part.message.content
    assert text == "xxxxx" and "was lost" in e.value.error
    with pytest.raises(ollama.ResponseError):
        list(client.generate("tiny", "giveup 5", stream=True))
    with pytest.raises(ollama.ResponseError) as e:
        ask(client, "fail 5")
    assert e.value.status_code == 503
    raw = server.request("POST", "/api/chat", chat("fail 5"))[2]
    assert json.loads(raw.split("\n")[-2]).keys() == {"error"} and raw.endswith("\n")


def test_errors_of_paths_and_methods(server):
    for method, path, wanted in (
        ("GET", "/api/nothing", 404),
        ("GET", "/api/chat", 405),
        ("POST", "/api/tags", 405),
        ("POST", "/api/delete", 405),
    ):
        status, _, text = server.request(method, path)
        assert status == wanted and type(json.loads(text)["error"]) is str
    assert server.request("GET", "/api/delete")[1]["allow"].startswith("DELETE")
    headers = {"Origin": "https://evil.example"}
    status, _, text = server.request("POST", "/api/chat", chat("say x"), headers)
    assert status == 403 and type(json.loads(text)["error"]) is str
    status, _, text = server.request("POST", "/api/chat", chat("say x"), {"Host": "evil.example"})
    assert status == 403 and type(json.loads(text)["error"]) is str
    status, _, text = server.request("POST", "/v1/nothing", {})
    assert status == 404 and type(json.loads(text)["error"]) is dict
    status, headers, _ = server.request(
        "OPTIONS", "/api/delete", headers={"Origin": "http://localhost:3000"}
    )
    assert status == 204 and "DELETE" in headers["access-control-allow-methods"]


def test_refusals_of_the_server(server):
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(head)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            answer += s.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert type(json.loads(answer.split(b"\r\n\r\n")[1])["error"]) is str


def test_a_long_prompt_is_refused(client):
    with pytest.raises(ollama.ResponseError) as e:
        ask(client, "say " + "x" * 9000)
    assert e.value.status_code == 400 and "8192" in e.value.error


@pytest.mark.parametrize("path", ["embed", "embeddings", "create", "push", "blobs/sha256:00"])
def test_what_is_not_served(server, path):
    status, _, text = server.request("POST", "/api/" + path, {"model": "tiny", "input": "x"})
    assert status == 501 and path[:4] in json.loads(text)["error"]


def test_not_served_through_the_client(client):
    for call in (
        lambda: client.embed("tiny", "x"),
        lambda: client.embeddings("tiny", "x"),
        lambda: client.create("mine", from_="tiny"),
        lambda: client.push("tiny"),
    ):
        with pytest.raises(ollama.ResponseError) as e:
            call()
        assert e.value.status_code == 501


# clients that leave, are slow, or wait


def raw_post(server, path, body, receive_bytes=None):
    data = json.dumps(body).encode()
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", server.port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def test_leaving_cancels(client, server):
    before = server.state()["n_cancelled"]
    for stream in (ask(client, "drip 5", stream=True), client.generate("tiny", "drip 5", stream=True)):
        next(stream)
        next(stream)
        stream.close()
    server.wait_for_state("n_cancelled", before + 2, 2)
    with raw_post(server, "/api/chat", chat("silent", stream=False)):
        server.wait_for_state("n_running", 1, 2)
    server.wait_for_state("n_cancelled", before + 3, 2)
    server.wait_for_state("n_running", 0, 2)


def test_a_slow_reader_gets_everything(server):
    with raw_post(server, "/api/chat", chat("repeat 60000 0123456789"), 4096) as s:
        time.sleep(0.7)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += s.recv(1 << 20)
    body = data.split(b"\r\n\r\n", 1)[1]
    text = b""
    while not body.startswith(b"0\r\n"):
        size, body = body.split(b"\r\n", 1)
        text += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    values = [json.loads(line) for line in text[:-1].split(b"\n")]
    joined = "".join(v["message"]["content"] for v in values)
    assert joined == ("0123456789" * 60000)[: len(joined)] and len(joined) > 8000
    assert values[-1]["done_reason"] == "length"


def test_progress_writes_nothing(server):
    _, values = post(server, "/api/chat", chat("progress 5"))
    assert "".join(v["message"]["content"] for v in values) == "ok"
    assert all(v["message"]["content"] for v in values[:-1])


def test_keepalive_is_an_empty_piece(client, server):
    """A stream that is silent for 10 s says something that every client joins to nothing."""
    begin = time.monotonic()
    stream = ask(client, "silent", stream=True)
    part = next(stream)
    assert 9 < time.monotonic() - begin < 14
    assert part.message.content == "" and part.message.role == "assistant" and not part.done
    stream.close()
    server.wait_for_state("n_running", 0, 2)


# model files


def test_pull(client, server):
    parts = list(client.pull("new:latest", stream=True))
    statuses = [p.status for p in parts]
    assert statuses[0] == "pulling manifest" and statuses[1] == "pulling aaaaaaaaaaaa"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    fetched = [p for p in parts if p.digest]
    assert {p.digest for p in fetched} == {"sha256:" + 64 * "a"}
    assert {p.total for p in fetched} == {4000000}
    done = [p.completed for p in fetched]
    assert done == sorted(done) and done[-1] == 4000000
    assert server.state()["last_file"] == "pull new"
    assert client.pull("org/new:Q4_0").status == "success"
    assert server.state()["last_file"] == "pull org/new:Q4_0"
    status, headers, text = server.request("POST", "/api/pull", {"name": "new", "insecure": True})
    assert status == 200 and headers["content-type"] == "application/x-ndjson"
    values = [json.loads(line) for line in text[:-1].split("\n")]
    assert values[0] == {"status": "pulling manifest"} and values[-1] == {"status": "success"}
    status, _, text = server.request("POST", "/api/pull", {"model": "new", "stream": False})
    assert (status, json.loads(text)) == (200, {"status": "success"})


def test_pull_without_a_digest(client):
    fetched = [p for p in client.pull("old", stream=True) if p.total]
    assert fetched[0].status == "pulling old.gguf" and fetched[0].digest is None
    assert fetched[-1].completed == 4000000


def test_pull_errors(client, server):
    for name, status in (("nothing", 404), ("busy", 429)):
        with pytest.raises(ollama.ResponseError) as e:
            list(client.pull(name, stream=True))
        assert e.value.status_code == status
    with pytest.raises(ollama.ResponseError) as e:
        list(client.pull("lost", stream=True))
    assert "nobody has" in e.value.error
    with pytest.raises(ollama.ResponseError) as e:
        client.pull("broken")
    assert e.value.status_code == 500 and "disk" in e.value.error
    statuses = []
    with pytest.raises(ollama.ResponseError) as e:
        for p in client.pull("broken", stream=True):
            statuses.append(p)
    assert "disk" in e.value.error and statuses[-1].completed == 4000000
    assert server.request("POST", "/api/pull", {})[0] == 400
    assert server.request("POST", "/api/pull", {"model": "new", "stream": 1})[0] == 400
    assert server.request("POST", "/api/pull", {"model": "x" * 20000})[0] == 400


def test_leaving_cancels_a_pull(client, server):
    before = server.state()["n_files_cancelled"]
    stream = client.pull("slow", stream=True)
    next(stream)
    next(stream)
    stream.close()
    server.wait_for_state("n_files_cancelled", before + 1, 2)
    with raw_post(server, "/api/pull", {"model": "slow", "stream": False}):
        server.wait_for_state("n_files_running", 1, 2)
    server.wait_for_state("n_files_cancelled", before + 2, 2)
    server.wait_for_state("n_files_running", 0, 2)


def test_a_pull_that_nobody_reads_takes_no_memory(server):
    with raw_post(server, "/api/pull", {"model": "flood"}, 4096):
        time.sleep(0.5)
        before = server.resident_bytes()
        time.sleep(1)
        assert server.resident_bytes() < before + 16000000  # of about 40 MB that it says
        assert server.state()["n_files_running"] == 1
    server.wait_for_state("n_files_running", 0, 5)


def test_delete_and_copy(client, server):
    assert client.delete("tiny:latest").status == "success"
    assert server.state()["last_file"] == "remove tiny"
    assert client.copy("tiny", "mine:latest").status == "success"
    assert server.state()["last_file"] == "copy tiny mine"
    for call in (lambda: client.delete("nothing"), lambda: client.copy("nothing", "x")):
        with pytest.raises(ollama.ResponseError) as e:
            call()
        assert e.value.status_code == 404 and "nobody knows" in e.value.error
    with pytest.raises(ollama.ResponseError) as e:
        client.delete("busy")
    assert e.value.status_code == 429
    assert server.request("DELETE", "/api/delete", {})[0] == 400
    assert server.request("POST", "/api/copy", {"source": "tiny"})[0] == 400
    assert server.request("POST", "/api/copy", {"destination": "tiny", "source": ""})[0] == 400
    headers = {"Origin": "https://evil.example"}
    status, _, text = server.request("DELETE", "/api/delete", {"model": "tiny"}, headers)
    assert status == 403 and type(json.loads(text)["error"]) is str


def test_many_pulls_are_refused(server):
    sockets = [raw_post(server, "/api/pull", {"model": "slow"}) for _ in range(64)]
    server.wait_for_state("n_files_running", 64, 5)
    status, headers, text = server.request("POST", "/api/pull", {"model": "new"})
    assert status == 429 and "64" in json.loads(text)["error"]
    for s in sockets:
        s.close()
    server.wait_for_state("n_files_running", 0, 5)


def test_stopping_the_server_ends_pulls():
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    s = Server(program)
    with raw_post(s, "/api/pull", {"model": "slow"}) as pull, raw_post(
        s, "/api/chat", chat("drip 5")
    ) as drip:
        s.wait_for_state("n_files_running", 1, 2)
        s.wait_for_state("n_running", 1, 2)
        assert s.stop() == 0
        for sock in (pull, drip):
            data = b""
            while part := sock.recv(65536):
                data += part
            assert b'{"error":"the server is shutting down"}\n' in data

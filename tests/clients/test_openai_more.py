"""Completions, responses, tools, reasoning, formats and log-probabilities over a scripted model.

Each whole answer and each event is checked against the SDK's types as raw JSON: the SDK itself builds its objects
without looking. What the scripts mean is in fixture/scripted.h. One token is one byte.
"""

import json
import math

import pytest

openai = pytest.importorskip("openai")

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from fixture_server import Server, chat, find_program

EVENT = TypeAdapter(ResponseStreamEvent)
CALL = '<tool_call>{"name":"%s","arguments":%s}</tool_call>'
WEATHER = CALL % ("weather", '{"city":"Köln","days":3}')
TIME = CALL % ("time", "{}")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [
    {"name": "weather", "description": "The weather", "parameters": SCHEMA},
    {"name": "time", "parameters": {"type": "object", "properties": {}}},
]
TOOLS = [{"type": "function", "function": f} for f in FUNCTIONS]
FLAT_TOOLS = [{"type": "function", "strict": False, **f} for f in FUNCTIONS]


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
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20)


def post(server, path, expect=200, **body):
    status, _, text = server.request("POST", "/v1" + path, {"model": "tiny", **body})
    assert status == expect, text
    return text if body.get("stream") and status == 200 else json.loads(text)


def refusal(server, path, **body):
    error = post(server, path, expect=400, **body)["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    return error["param"]


def chunks(text):
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


# completions


def test_completion(client, server):
    answer = post(server, "/completions", prompt="say hello")
    Completion.model_validate(answer)
    assert answer["choices"] == [
        {"text": "hello", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"]["prompt_tokens"] == 9 and answer["usage"]["completion_tokens"] == 6
    assert client.completions.create(model="plain", prompt="say hi").choices[0].text == "hi"


def test_completion_prompts(client):
    ids = list(b"say b")
    for prompt, texts in [
        ("say a", ["a"]),
        (["say a", "say b"], ["a", "b"]),
        (ids, ["b"]),
        ([list(b"say a"), ids], ["a", "b"]),
    ]:
        answer = client.completions.create(model="tiny", prompt=prompt)
        assert [c.text for c in answer.choices] == texts
        assert [c.index for c in answer.choices] == list(range(len(texts)))
    answer = client.completions.create(model="tiny", prompt=["say a", "say b"], n=2, best_of=2)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert answer.usage.prompt_tokens == 10


def test_control_tokens_of_raw_prompts_count(client):
    """Whoever sends a raw prompt has rendered the template already."""
    prompt = "<|im_start|>user\nsay rendered<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert answer.choices[0].text == "rendered"
    assert answer.usage.prompt_tokens == len(prompt) - 2 * 11 - 9


def test_completion_length(client):
    answer = client.completions.create(model="tiny", prompt="repeat 100 x")
    assert answer.choices[0].text == "x" * 16 and answer.choices[0].finish_reason == "length"
    answer = client.completions.create(model="tiny", prompt="repeat 100 x", max_tokens=20)
    assert answer.usage.completion_tokens == 20
    answer = client.completions.create(model="tiny", prompt="say one, two", stop=[", "])
    assert answer.choices[0].text == "one" and answer.choices[0].finish_reason == "stop"


def test_completion_logprobs(server):
    logprobs = post(server, "/completions", prompt="say hé", logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert all(math.isclose(p, math.log(0.5), rel_tol=1e-6) for p in logprobs["token_logprobs"])
    assert list(logprobs["top_logprobs"][0]) == ["h", "i"]
    none = post(server, "/completions", prompt="say h", logprobs=0)["choices"][0]["logprobs"]
    assert none["tokens"] == ["h"] and none["top_logprobs"] is None


def test_completion_echo(server):
    choice = post(server, "/completions", prompt="say hi", echo=True, logprobs=1)["choices"][0]
    assert choice["text"] == "say hihi"
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "say hihi"
    assert logprobs["token_logprobs"][:6] == [None] * 6
    assert logprobs["top_logprobs"][:6] == [None] * 6
    assert None not in logprobs["token_logprobs"][6:] and len(logprobs["token_logprobs"]) == 8
    assert logprobs["text_offset"] == list(range(8))


def test_completion_stream(client, server):
    text = post(
        server,
        "/completions",
        prompt=["say abcdef", "say xyz"],
        stream=True,
        echo=True,
        logprobs=1,
        stream_options={"include_usage": True},
    )
    data = chunks(text)
    assert data[-1] == "[DONE]"
    events = [json.loads(d) for d in data[:-1]]
    assert len({e["id"] for e in events}) == 1
    texts, tokens, offsets = ["", ""], ["", ""], [[], []]
    for e in events[:-1]:
        assert e["usage"] is None
        choice = e["choices"][0]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += "".join(choice["logprobs"]["tokens"])
        offsets[choice["index"]] += choice["logprobs"]["text_offset"]
    assert texts == tokens == ["say abcdefabcdef", "say xyzxyz"]
    assert offsets == [list(range(16)), list(range(10))]
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]].count("stop") == 2
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 11
    stream = client.completions.create(model="tiny", prompt="say hello", stream=True)
    assert "".join(c.choices[0].text for c in stream) == "hello"


def test_completion_refusals(server):
    for param, body in {
        "prompt": {},
        "suffix": {"prompt": "a", "suffix": "b"},
        "best_of": {"prompt": "a", "best_of": 2},
        "logprobs": {"prompt": "a", "logprobs": 6},
        "n": {"prompt": "a", "n": 17},
        "max_tokens": {"prompt": "a", "max_tokens": 0},
        "prompt[1]": {"prompt": ["a", 5]},
    }.items():
        assert refusal(server, "/completions", **body) == param
    for prompt in [[], [[]], [1.5], {}, 5, [1, "a"], [999999], "", [["a"]], ["a"] * 129, [-1]]:
        assert refusal(server, "/completions", prompt=prompt).startswith("prompt")
    assert post(server, "/completions", prompt="say a", suffix="")["choices"][0]["text"] == "a"
    assert refusal(server, "/completions", prompt="x" * 9000) == "prompt"


# tools of the chat


def test_tools(client, server):
    body = chat("say On it. " + WEATHER + TIME, tools=TOOLS)
    answer = post(server, "/chat/completions", **body)
    ChatCompletion.model_validate(answer)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "On it."
    calls = choice["message"]["tool_calls"]
    assert [c["function"]["name"] for c in calls] == ["weather", "time"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln", "days": 3}
    assert len({c["id"] for c in calls}) == 2
    only = post(server, "/chat/completions", **chat("say " + TIME, tools=TOOLS))
    assert only["choices"][0]["message"]["content"] is None


def test_tools_stream(client, server):
    body = chat("say On it. " + WEATHER + TIME, tools=TOOLS)
    text = post(server, "/chat/completions", **body, stream=True)
    ids = []
    for data in chunks(text)[:-1]:
        ChatCompletionChunk.model_validate(json.loads(data))
        for call in json.loads(data)["choices"][0]["delta"].get("tool_calls", []):
            ids += [call["id"]] if "id" in call else []
            assert ("id" in call) == ("name" in call["function"]) == ("type" in call)
    assert len(ids) == 2
    with client.chat.completions.stream(**body) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert final.choices[0].finish_reason == "tool_calls"
    assert message.content.strip() == "On it."
    assert [c.function.name for c in message.tool_calls] == ["weather", "time"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln", "days": 3}
    assert all(c.id.startswith("call_") and c.id.count("call_") == 1 for c in message.tool_calls)


def test_tool_choice(server):
    def grammar(**more):
        post(server, "/chat/completions", **chat("say " + TIME, tools=TOOLS, **more))
        last = server.state()["last"]
        return last["grammar_kind"], last.get("grammar", "")

    assert grammar() == ("none", "")
    assert grammar(tool_choice="auto") == ("none", "")
    kind, required = grammar(tool_choice="required")
    assert kind == "lark" and "weather" in required and "time" in required
    kind, one = grammar(tool_choice="required", parallel_tool_calls=False)
    assert kind == "lark" and one != required
    kind, named = grammar(tool_choice={"type": "function", "function": {"name": "time"}})
    assert kind == "lark" and "time" in named and "weather" not in named
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    kind, named = grammar(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert kind == "lark" and "weather" not in named
    text = post(
        server, "/chat/completions", **chat("say " + TIME, tools=TOOLS, tool_choice="none")
    )["choices"][0]["message"]
    assert text["content"] == TIME and "tool_calls" not in text


def test_history_with_tools(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        {"role": "user", "content": "prompt"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2000)
    assert "noon" in answer.choices[0].message.content


# reasoning, formats, log-probabilities of the chat


def test_reasoning(client):
    body = chat("say <think>Let me see.</think>Yes.")
    message = client.chat.completions.create(**body).choices[0].message
    assert message.content == "Yes."
    assert message.reasoning_content == message.reasoning == "Let me see."
    reasoning = content = ""
    for chunk in client.chat.completions.create(**body, stream=True):
        reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        content += chunk.choices[0].delta.content or ""
    assert (reasoning, content) == ("Let me see.", "Yes.")
    usage = client.chat.completions.create(**body).usage
    assert usage.completion_tokens_details.reasoning_tokens >= len("Let me see.")


class City(BaseModel):
    city: str
    days: int


def test_response_format(client, server):
    body = chat('say {"city":"Rome","days":2}')
    client.chat.completions.create(**body, response_format={"type": "json_object"})
    assert server.state()["last"]["grammar_kind"] == "json_object"
    parsed = client.chat.completions.parse(**body, response_format=City).choices[0].message.parsed
    assert parsed == City(city="Rome", days=2)
    last = server.state()["last"]
    assert last["grammar_kind"] == "json_schema"
    assert json.loads(last["grammar"])["properties"]["days"]["type"] == "integer"
    client.chat.completions.create(**body, response_format={"type": "text"})
    assert server.state()["last"]["grammar_kind"] == "none"


def test_logprobs(client, server):
    body = chat("say hello", logprobs=True, top_logprobs=3)
    answer = post(server, "/chat/completions", **body)
    ChatCompletion.model_validate(answer)
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in content) == "hello"
    assert [t["token"] for t in content[0]["top_logprobs"]] == ["h", "i", "j"]
    assert server.state()["last"]["n_top_logprobs"] == 3
    tokens = ""
    for chunk in client.chat.completions.create(**body, stream=True):
        if chunk.choices[0].logprobs:
            tokens += "".join(t.token for t in chunk.choices[0].logprobs.content)
    assert tokens == "hello"


# responses


def respond(server, script, /, **more):
    answer = post(server, "/responses", input=script, **more)
    Response.model_validate(answer)
    return answer


def stream_events(server, script, /, **more):
    raw = post(server, "/responses", input=script, stream=True, **more)
    events, names = [], []
    for line in raw.split("\n"):
        if line.startswith("event: "):
            names.append(line[7:])
        if line.startswith("data: "):
            events.append(json.loads(line[6:]))
            EVENT.validate_python(events[-1])
    assert [e["type"] for e in events] == names
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    return events


def response_prompt(server, items, **more):
    return json.loads(
        respond(server, [*items, {"role": "user", "content": "prompt"}], **more)["output"][0][
            "content"
        ][0]["text"]
    )


def test_response(client, server):
    answer = respond(
        server,
        "say hello",
        instructions="Be brief.",
        temperature=0.5,
        metadata={"a": "b"},
        store=True,
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        max_output_tokens=100,
    )
    assert answer["status"] == "completed" and answer["object"] == "response"
    assert answer["output"][0]["content"][0]["text"] == "hello"
    assert answer["instructions"] == "Be brief." and answer["metadata"] == {"a": "b"}
    assert answer["temperature"] == 0.5 and answer["max_output_tokens"] == 100
    assert answer["reasoning"]["effort"] == "low" and answer["store"] is False
    assert answer["usage"]["output_tokens"] == 6
    assert client.responses.create(model="tiny", input="say hello").output_text == "hello"


def test_response_items(server):
    text = response_prompt(
        server,
        [
            {"type": "message", "role": "developer", "content": "Rules."},
            {"role": "user", "content": [{"type": "input_text", "text": "When?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "A"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "time", "arguments": '{"zone": 1}'},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "noon"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "midnight"}],
            },
        ],
        instructions="Be brief.",
    )
    turns = text.split("{257}")
    assert [t.split("\n")[0].split(" ")[0] for t in turns if t] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
        "assistant",
    ]
    assert "Be brief.\n\nRules." in turns[1]
    assert "I look." in turns[3] and turns[3].count('"arguments"') == 2 and '"zone": 1' in turns[3]
    assert "noon" in turns[4] and "midnight" in turns[5]


def test_response_empty_input(server):
    for body in [{"input": ""}, {"input": []}, {"instructions": "Be brief."}]:
        Response.model_validate(post(server, "/responses", **body))


def test_response_length(client, server):
    answer = respond(server, "repeat 100 x", max_output_tokens=20)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    events = stream_events(server, "repeat 100 x", max_output_tokens=20)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "x" * 20


def test_response_tools(client, server):
    tools = [*FLAT_TOOLS, {"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "namespace"}]
    script = "say <think>Hm.</think>On it. " + WEATHER + TIME
    answer = respond(server, script, tools=tools)
    assert [o["type"] for o in answer["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    reasoning, message, weather, time = answer["output"]
    assert reasoning["content"][0]["text"] == "Hm." and reasoning["summary"] == []
    assert message["content"][0]["text"].strip() == "On it."
    assert json.loads(weather["arguments"]) == {"city": "Köln", "days": 3}
    assert time["name"] == "time" and time["call_id"] != weather["call_id"]
    assert [t["name"] for t in answer["tools"]] == ["weather", "time"]
    assert answer["tool_choice"] == "auto" and answer["parallel_tool_calls"] is True
    with client.responses.stream(model="tiny", input=script, tools=FLAT_TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert [o.type for o in final.output] == [o["type"] for o in answer["output"]]
    assert json.loads(final.output[2].arguments) == {"city": "Köln", "days": 3}


def test_response_tool_choice(server):
    for choice, words in [
        ("required", ["weather", "time"]),
        ({"type": "function", "name": "time"}, ["time"]),
    ]:
        answer = respond(server, "say " + TIME, tools=FLAT_TOOLS, tool_choice=choice)
        assert answer["tool_choice"] == choice
        last = server.state()["last"]
        assert last["grammar_kind"] == "lark"
        assert [w for w in ["weather", "time"] if w in last["grammar"]] == words


def test_response_stream(client, server):
    script = "say <think>Hm.</think>On it. " + TIME
    events = stream_events(server, script, tools=FLAT_TOOLS)
    types = [e["type"].removeprefix("response.") for e in events]
    for i in range(len(types) - 1, 0, -1):
        if types[i].endswith(".delta") and types[i] == types[i - 1]:
            del types[i]
    assert types == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert len({e["response"]["id"] for e in events if "response" in e}) == 1
    for kind, done, field in [
        ("output_text", "text", "text"),
        ("reasoning_text", "text", "text"),
        ("function_call_arguments", "arguments", "arguments"),
    ]:
        deltas = "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta")
        assert deltas == next(e[done] for e in events if e["type"] == f"response.{kind}.done")
    items = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    assert events[-1]["response"]["usage"]["output_tokens"] > 0


def test_response_stream_helper(client):
    with client.responses.stream(model="tiny", input="say hello there") as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == "hello there"
    with client.responses.stream(model="tiny", input="say ") as stream:
        assert stream.get_final_response().output_text == ""


def test_response_format_of_text(client, server):
    script = 'say {"city":"Rome","days":2}'
    parsed = client.responses.parse(model="tiny", input=script, text_format=City)
    assert parsed.output_parsed == City(city="Rome", days=2)
    last = server.state()["last"]
    assert last["grammar_kind"] == "json_schema"
    assert json.loads(last["grammar"])["properties"]["days"]["type"] == "integer"
    answer = respond(server, script, text={"format": {"type": "json_object"}})
    assert answer["text"]["format"] == {"type": "json_object"}
    assert server.state()["last"]["grammar_kind"] == "json_object"


def test_response_logprobs(server):
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = respond(server, "say hello", **more)
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(t["token"] for t in logprobs) == "hello"
    assert len(logprobs[0]["top_logprobs"]) == 2
    events = stream_events(server, "say hello", **more)
    deltas = [t for e in events if e["type"].endswith("text.delta") for t in e["logprobs"]]
    assert deltas == logprobs == events[-1]["response"]["output"][0]["content"][0]["logprobs"]


def test_response_failure(client, server):
    events = stream_events(server, "fail 3")
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="tiny", input="fail 0")
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="tiny", input="busy")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="say hi")


def test_response_refusals(server):
    for param, body in {
        "previous_response_id": {"previous_response_id": "resp_1"},
        "conversation": {"conversation": "conv_1"},
        "background": {"background": True},
        "truncation": {"truncation": "auto"},
        "prompt": {"prompt": {"id": "p"}},
        "metadata": {"metadata": {"a": 5}},
        "text.format.type": {"text": {"format": {"type": "xml"}}},
        "text.format.schema": {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "reasoning.effort": {"reasoning": {"effort": "much"}},
        "tool_choice": {"tool_choice": "required"},
        "max_output_tokens": {"max_output_tokens": 0},
        "top_logprobs": {"top_logprobs": 21},
        "tools[0].name": {"tools": [{"type": "function"}]},
    }.items():
        assert refusal(server, "/responses", input="say a", **body) == param
    for param, item in {
        "input[0]": 5,
        "input[0].role": {"content": "a"},
        "input[0].content": {"role": "user"},
        "input[0].type": {"type": "item_reference", "id": "msg_1"},
        "input[0].call_id": {"type": "function_call", "name": "f", "arguments": "{}"},
        "input[0].output": {"type": "function_call_output", "call_id": "c"},
        "input[0].content[0]": {
            "role": "user",
            "content": [{"type": "input_image", "image_url": "data:"}],
        },
    }.items():
        assert refusal(server, "/responses", input=[item]) == param
    assert refusal(server, "/responses") == "input"
    assert refusal(server, "/responses", input=5) == "input"

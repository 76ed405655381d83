"""Anthropic's API over a scripted model, through the official SDK and below it.

What the scripts mean is in fixture/scripted.h. One token is one byte.
"""

import asyncio
import json
import socket

import pytest

anthropic = pytest.importorskip("anthropic")

from anthropic.types import (
    Message,
    MessageTokensCount,
    ModelInfo,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawContentBlockStopEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
)

from fixture_server import Server, find_program

VERSION = {"anthropic-version": "2023-06-01"}
EVENTS = {
    "message_start": RawMessageStartEvent,
    "content_block_start": RawContentBlockStartEvent,
    "content_block_delta": RawContentBlockDeltaEvent,
    "content_block_stop": RawContentBlockStopEvent,
    "message_delta": RawMessageDeltaEvent,
    "message_stop": RawMessageStopEvent,
}
DELTAS = {
    "text": {"text_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


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
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=20)


def body(script, **more):
    return {
        "model": "tiny",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": script}],
        **more,
    }


def ask(client, script, **more):
    return client.messages.create(**body(script, **more))


def post(server, content, path="/v1/messages", headers=None):
    status, headers, text = server.request("POST", path, content, headers)
    return status, headers, json.loads(text)


def prompt_text(client, messages, **more):
    """What reaches the model: control tokens are {id}. The last message must be a user's text."""
    answer = client.messages.create(model="tiny", max_tokens=8000, messages=messages, **more)
    return json.loads(answer.content[0].text)


def read_events(text):
    """The events of a stream, each checked against the SDK's types, and their order."""
    events, opened, n_blocks = [], None, 0
    for part in text.split("\n\n")[:-1]:
        if part.startswith(":"):
            continue
        name, data = part.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        event = json.loads(data[6:])
        assert event["type"] == name[7:]
        if event["type"] == "ping":
            continue
        EVENTS[event["type"]].model_validate(event, strict=True)
        events.append(event)
    assert [e["type"] for e in events[:1]] == ["message_start"]
    assert [e["type"] for e in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    for event in events[1:-2]:
        assert event["index"] == n_blocks
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["content_block"]["type"]
        elif event["type"] == "content_block_delta":
            assert event["delta"]["type"] in DELTAS[opened]
        else:
            assert event["type"] == "content_block_stop" and opened
            opened, n_blocks = None, n_blocks + 1
    assert opened is None
    return events


def stream(server, script, **more):
    status, headers, text = server.request(
        "POST", "/v1/messages?beta=true", body(script, stream=True, **more), VERSION
    )
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["request-id"] == headers["x-request-id"]
    return read_events(text)


# answers


def test_message(client, server):
    answer = ask(client, "say Hällo, wörld 🌊!")
    assert [b.type for b in answer.content] == ["text"]
    assert answer.content[0].text == "Hällo, wörld 🌊!"
    assert answer.stop_reason == "end_turn" and answer.stop_sequence is None
    assert answer.id.startswith("msg_") and answer.model == "tiny" and answer.role == "assistant"
    status, headers, raw = post(server, body("say hi"))
    assert status == 200 and headers["request-id"].startswith("req_")
    whole = Message.model_validate(raw, strict=True)
    n_prompt = len("say hi") + len("user\n") + len("assistant\n") + 4
    assert whole.usage.cache_read_input_tokens == n_prompt // 2
    assert whole.usage.input_tokens == n_prompt - n_prompt // 2
    assert whole.usage.cache_creation_input_tokens == 0
    assert whole.usage.output_tokens == 3  # h, i, end


def test_stream(client, server):
    said = "grün 🌊 " * 40
    with ask(client, "say " + said, stream=True) as events:
        text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
    assert text == said
    events = stream(server, "say " + said)
    assert [e["type"] for e in events][1] == "content_block_start"
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    usage = events[-2]["usage"]
    assert usage["output_tokens"] == len(said.encode()) + 1
    assert events[0]["message"]["usage"]["input_tokens"] == (
        usage["input_tokens"] + usage["cache_read_input_tokens"]
    )


def test_stream_helper(client):
    with client.messages.stream(**body("say one two three")) as s:
        assert "".join(s.text_stream) == "one two three"
        final = s.get_final_message()
    assert final.content[0].text == "one two three" and final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 14 and final.usage.cache_read_input_tokens > 0


def test_async_client(server):
    async def run():
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as c:
            answer = await c.messages.create(**body("say async"))
            async with c.messages.stream(**body("say stream")) as s:
                return answer.content[0].text, await s.get_final_text()

    assert asyncio.run(run()) == ("async", "stream")


def test_progress_is_invisible(client, server):
    with client.messages.stream(**body("progress 3")) as s:
        assert s.get_final_text() == "ok"
    raw = server.request("POST", "/v1/messages", body("progress 3", stream=True))[2]
    assert ": prefill 1024/3072\n\n" in raw
    read_events(raw)


def test_ping_keeps_alive(server):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    content = json.dumps(body("silent", stream=True)).encode()
    sock.sendall(
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
        + f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    seen = b""
    while b"event: ping" not in seen:
        piece = sock.recv(65536)
        assert piece
        seen += piece
    assert seen.index(b"event: message_start") < seen.index(b"event: ping")
    sock.close()
    server.wait_for_state("n_running", 0, 5)


def test_stop_reasons(client, server):
    answer = ask(client, "say abcdef", max_tokens=3)
    assert answer.stop_reason == "max_tokens" and answer.content[0].text == "abc"
    answer = ask(client, "say one STOP two", stop_sequences=["nothing", "STOP"])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "STOP"
    assert answer.content[0].text == "one "
    events = stream(server, "say one STOP two", stop_sequences=["STOP"])
    assert events[-2]["delta"]["stop_reason"] == "stop_sequence"
    assert events[-2]["delta"]["stop_sequence"] == "STOP"
    answer = ask(client, "repeat 1000 0123456789", max_tokens=100000)
    assert answer.stop_reason == "model_context_window_exceeded"
    answer = ask(client, "say ")
    assert answer.content == [] and answer.stop_reason == "end_turn"
    assert len(stream(server, "say ")) == 3


def test_thinking(client, server):
    answer = ask(client, "say <think>let me see</think>so it is")
    assert [b.type for b in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "let me see" and answer.content[0].signature
    assert answer.content[1].text == "so it is"
    assert answer.usage.output_tokens_details.thinking_tokens > 0
    events = stream(server, "say <think>let me see</think>so it is")
    deltas = [e["delta"]["type"] for e in events if e["type"] == "content_block_delta"]
    assert deltas[0] == "thinking_delta" and deltas.count("signature_delta") == 1
    assert deltas.index("signature_delta") < deltas.index("text_delta")
    with client.messages.stream(**body("say <think>hm</think>yes")) as s:
        final = s.get_final_message()
    assert final.content[0].thinking == "hm" and final.content[1].text == "yes"
    assert final.content[0].signature == answer.content[0].signature
    # The whole message is a valid message of the next request.
    prompt_text(client, [*body("say x")["messages"], final.to_param(), *body("prompt")["messages"]])


def test_thinking_that_is_omitted(client, server):
    config = {"type": "adaptive", "display": "omitted"}
    answer = ask(client, "say <think>secret</think>yes", thinking=config)
    assert answer.content[0].thinking == "" and answer.content[0].signature
    assert answer.content[1].text == "yes"
    events = stream(server, "say <think>secret</think>yes", thinking=config)
    assert "secret" not in json.dumps(events)


# tools


def test_tool_use(client, server):
    answer = ask(client, "say I look." + CALL, tools=[WEATHER])
    assert [b.type for b in answer.content] == ["text", "tool_use"]
    assert answer.stop_reason == "tool_use"
    call = answer.content[1]
    assert call.name == "weather" and call.input == {"city": "Köln"}
    assert call.id.startswith("toolu_")
    events = stream(server, "say I look." + CALL, tools=[WEATHER])
    start = [e["content_block"] for e in events if e["type"] == "content_block_start"][1]
    assert start["input"] == {} and start["name"] == "weather"
    pieces = [
        e["delta"]["partial_json"]
        for e in events
        if e["type"] == "content_block_delta" and e["delta"]["type"] == "input_json_delta"
    ]
    assert json.loads("".join(pieces)) == {"city": "Köln"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_two_tools(client, server):
    with client.messages.stream(**body("say " + CALL + "\n" + CALL, tools=[WEATHER])) as s:
        final = s.get_final_message()
    assert [b.type for b in final.content] == ["tool_use", "tool_use"]
    assert len({b.id for b in final.content}) == 2
    assert [b.input for b in final.content] == [{"city": "Köln"}] * 2
    stream(server, "say " + CALL + "\n" + CALL, tools=[WEATHER])


@pytest.mark.parametrize("streams", [False, True])
def test_one_tool_at_most(client, server, streams):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    more = {"tools": [WEATHER], "tool_choice": choice}
    if streams:
        stream(server, "say a" + CALL + CALL + "b", **more)
        with client.messages.stream(**body("say a" + CALL + CALL + "b", **more)) as s:
            answer = s.get_final_message()
    else:
        answer = ask(client, "say a" + CALL + CALL + "b", **more)
    assert [b.type for b in answer.content] == ["text", "tool_use"]
    assert answer.content[1].input == {"city": "Köln"} and answer.stop_reason == "tool_use"


def test_tool_loop(client):
    asked = body("say " + CALL, tools=[WEATHER])
    first = client.messages.create(**asked)
    messages = [
        *asked["messages"],
        first.to_param(),
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": first.content[0].id,
                    "content": [{"type": "text", "text": "rain"}, {"type": "text", "text": "wind"}],
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": "no such city",
                },
                {"type": "tool_result", "tool_use_id": "toolu_3"},
                {"type": "text", "text": "prompt"},
            ],
        },
    ]
    text = prompt_text(client, messages, tools=[WEATHER])
    turns = [t for t in text.split("{257}") if t]
    assert [t.split("\n")[0] for t in turns] == [
        "system", "user", "assistant", "tool weather", "tool", "tool", "user", "assistant"
    ]
    assert json.loads(turns[2].split("\n")[1].removesuffix("{258}")) == [
        {
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Köln"}},
            "id": first.content[0].id,
        }
    ]
    assert turns[3] == "tool weather\nrain\n\nwind{258}\n"
    assert turns[4] == "tool\nError: no such city{258}\n" and turns[5] == "tool\n{258}\n"


def test_tools_that_are_refused(server):
    for tool in (
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "bash_20250124", "name": "bash"},
    ):
        status, _, answer = post(server, body("say x", tools=[tool]))
        assert status == 400 and tool["type"] in answer["error"]["message"]
    for tools, field in (
        ([{"name": "a"}], "tools.0.input_schema"),
        ([{"input_schema": {}}], "name"),
        ([{"name": "a b", "input_schema": {}}], "name"),
        ({"name": "a"}, "tools"),
        ([1], "tools.0"),
    ):
        status, _, answer = post(server, body("say x", tools=tools))
        assert status == 400 and field in answer["error"]["message"]
    for choice in (
        {"type": "any"},
        {"type": "tool", "name": "weather"},
        {"type": "tool"},
        {"type": "required"},
        "auto",
    ):
        assert post(server, body("say x", tool_choice=choice))[0] == 400
    assert post(server, body("say x", tools=[WEATHER], tool_choice={"type": "none"}))[0] == 200


# what the model sees


def test_system_and_roles(client):
    text = prompt_text(
        client,
        [
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "an"}]},
            {"role": "assistant", "content": "swer"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "three", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "four"},
                ],
            },
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "prompt"},
        ],
        system=[
            {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Always."},
        ],
    )
    turns = [t.removesuffix("{258}\n") for t in text.split("{257}") if t]
    assert turns == [
        "system\nYou help.\n\nAlways.",
        "user\none\n\ntwo",
        "assistant\nan\n\nswer",
        "user\nthree\n\nfour\n\n<system>\nbe brief\n</system>",
        "assistant\nyes",
        "user\nprompt",
        "assistant\n",
    ]


def test_system_messages_at_the_beginning(client):
    messages = [{"role": "system", "content": "b"}, {"role": "user", "content": "prompt"}]
    assert "{257}system\na\n\nb{258}" in prompt_text(client, messages, system="a")
    assert "{257}system\nb{258}" in prompt_text(client, messages)


def test_volatile_system_lines(client):
    def header(n):
        return f"x-anthropic-billing-header: cc_version=2.1.{n}; cc_entrypoint=cli; cch={n}d{n};"

    def block(text):
        return {"type": "text", "text": text}

    user = [{"role": "user", "content": "prompt"}]
    plain = prompt_text(client, user, system="You help.")
    for n in (1, 2):
        assert prompt_text(client, user, system=header(n) + "\nYou help.") == plain
        assert prompt_text(client, user, system=[block(header(n)), block("You help.")]) == plain
    assert prompt_text(client, user, system=header(1)) == prompt_text(client, user)
    later = "You help.\n" + header(1)  # not at the beginning: somebody's text
    assert header(1) in prompt_text(client, user, system=later)


def test_control_tokens_of_users_are_text(client):
    text = prompt_text(
        client,
        [
            {"role": "user", "content": "<|im_end|>"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "prompt"},
        ],
    )
    assert "{257}user\n<|im_end|>{258}\n" in text and text.count("{258}") == 3


def test_thinking_as_the_template_sees_it(client):
    def told(**more):
        return prompt_text(client, [{"role": "user", "content": "prompt"}], **more)

    assert "thinking" not in told() and "thinking" not in told(output_config={"effort": "low"})
    assert "{257}thinking\nFalse {258}" in told(thinking={"type": "disabled"})
    budget = {"type": "enabled", "budget_tokens": 2048}
    assert "{257}thinking\nTrue low{258}" in told(thinking=budget, output_config={"effort": "low"})


def test_sampling(client):
    answer = ask(
        client, "sampling", extra_body={"temperature": 0.5, "top_p": 0.25, "top_k": 7}
    )
    told = json.loads(answer.content[0].text)
    assert (told["temperature"], told["top_p"], told["top_k"]) == (0.5, 0.25, 7)
    assert told["n_max"] == 4096


def test_what_is_accepted(server):
    for more in (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": None},
        {"context_management": {"edits": []}, "something_new": 1},
    ):
        headers = {"anthropic-beta": "nobody-knows-2030-01-01", "x-api-key": "k", **VERSION}
        assert post(server, body("say x", **more), headers=headers)[0] == 200


def test_what_is_refused(server):
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
    document = {"type": "document", "source": {"type": "text", "data": "x"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    use = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    server_use = {"type": "server_tool_use", "id": "t", "name": "web_search", "input": {}}

    def user(*blocks):
        return {"messages": [{"role": "user", "content": list(blocks)}]}

    def assistant(*blocks):
        said = {"role": "assistant", "content": list(blocks)}
        return {"messages": [said, *body("say x")["messages"]]}

    for more, words in (
        (user(image), "'image'"),
        (user(document), "'document'"),
        (user(result), "'image'"),
        (user(use), "'tool_use'"),
        (user({"type": "text"}), "messages.0.content.0.text"),
        (user({"text": "x"}), "messages.0.content.0.type"),
        (user(1), "messages.0.content.0"),
        (user({"type": "tool_result"}), "tool_use_id"),
        (assistant(server_use), "'server_tool_use'"),
        (assistant({**use, "input": "{}"}), "messages.0.content.0.input"),
        (assistant({"type": "thinking"}), "messages.0.content.0.thinking"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [*body("a")["messages"], {"role": "assistant", "content": "b"}]}, "prefill"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "model"),
        ({"system": 1}, "system"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": "x"}, "top_k"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ):
        status, headers, answer = post(server, body("say x", **more))
        assert status == 400, more
        assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
        assert answer["request_id"] == headers["request-id"]
        assert words in answer["error"]["message"], more


# tokens


def test_count_tokens(client, server):
    asked = body("say hi", system="You help.")
    count = client.messages.count_tokens(
        model="tiny", messages=asked["messages"], system=asked["system"]
    ).input_tokens
    usage = client.messages.create(**asked).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens
    more = client.messages.count_tokens(
        model="tiny", messages=asked["messages"], system=asked["system"], tools=[WEATHER]
    )
    assert more.input_tokens > count
    before = server.state()["n_submitted"]
    open_end = [*asked["messages"], {"role": "assistant", "content": "x"}]
    status, _, raw = post(
        server, {"model": "tiny", "messages": open_end}, "/v1/messages/count_tokens?beta=true"
    )
    assert status == 200 and MessageTokensCount.model_validate(raw, strict=True)
    long = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 20000}]}
    assert post(server, long, "/v1/messages/count_tokens")[2]["input_tokens"] > 20000
    assert server.state()["n_submitted"] == before


# models


def test_models(client, server):
    ids = [m.id for m in client.models.list()]
    assert ids == ["tiny", "org/tiny", "loading", "plain"]
    assert [m.id for m in client.models.list(limit=1)] == ids  # page by page
    model = client.models.retrieve("org/tiny")
    assert model.id == "org/tiny" and model.type == "model" and model.created_at.year == 2023
    page = server.request("GET", "/v1/models?limit=2", headers=VERSION)[2]
    listed = json.loads(page)
    assert listed["has_more"] and (listed["first_id"], listed["last_id"]) == ("tiny", "org/tiny")
    for m in listed["data"]:
        ModelInfo.model_validate_json(json.dumps(m), strict=True)

    def listed_ids(query):
        answer = json.loads(server.request("GET", "/v1/models?" + query, headers=VERSION)[2])
        return [m["id"] for m in answer["data"]], answer["has_more"]

    assert listed_ids("after_id=org%2Ftiny&limit=1") == (["loading"], True)
    assert listed_ids("after_id=plain") == ([], False)
    assert listed_ids("before_id=plain&limit=2") == (["org/tiny", "loading"], True)
    assert listed_ids("before_id=org/tiny") == (["tiny"], False)
    for query in ("limit=0", "limit=1001", "limit=x", "limit=", "after_id=nobody"):
        status, _, text = server.request("GET", "/v1/models?" + query, headers=VERSION)
        assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error"
    assert json.loads(server.request("GET", "/v1/models")[2])["object"] == "list"
    with pytest.raises(anthropic.NotFoundError) as e:
        client.models.retrieve("nobody/nothing")
    assert e.value.type == "not_found_error"


# errors


def test_errors(client, server):
    for script, error, status, kind in (
        ("busy", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("unavailable", anthropic.InternalServerError, 529, "overloaded_error"),
        ("fail 0", anthropic.InternalServerError, 529, "overloaded_error"),
    ):
        for streams in (False, True):
            with pytest.raises(error) as e:
                ask(client, script, stream=streams)
            assert e.value.status_code == status and e.value.type == kind
            assert e.value.request_id == e.value.body["request_id"]
            assert e.value.response.headers["retry-after"]
    with pytest.raises(anthropic.NotFoundError) as e:
        ask(client, "say x", model="nobody")
    assert e.value.type == "not_found_error" and "nobody" in str(e.value)
    with pytest.raises(anthropic.InternalServerError) as e:
        ask(client, "say x", model="loading")
    assert e.value.status_code == 529
    with pytest.raises(anthropic.BadRequestError) as e:
        ask(client, "x" * 9000)
    assert "prompt is too long: 90" in e.value.body["error"]["message"]
    status, _, answer = post(server, b"{")
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"


def test_errors_within_a_stream(client, server):
    for script in ("fail 3", "giveup 3"):
        with pytest.raises(anthropic.APIStatusError) as e:
            list(ask(client, script, stream=True))
        assert e.value.type == "overloaded_error"
    raw = server.request("POST", "/v1/messages", body("fail 3", stream=True))[2]
    last = raw.split("\n\n")[-2]
    assert last.startswith('event: error\ndata: {"type":"error"') and "request_id" in last


def test_errors_of_the_server(server):
    def check(answer, status, kind):
        assert answer[0] == status
        told = json.loads(answer[2])
        assert told["type"] == "error" and told["error"]["type"] == kind
        assert told["request_id"] == answer[1]["request-id"] == answer[1]["x-request-id"]

    check(server.request("GET", "/v1/messages"), 405, "invalid_request_error")
    check(server.request("POST", "/v1/messages/batches", {}), 404, "not_found_error")
    check(server.request("GET", "/v1/nothing", headers=VERSION), 404, "not_found_error")
    origin = {"origin": "https://elsewhere.example"}
    check(server.request("POST", "/v1/messages", {}, origin), 403, "permission_error")
    host = {"host": "elsewhere.example"}
    check(server.request("POST", "/v1/messages", {}, host), 403, "permission_error")
    coded = {"content-encoding": "gzip"}
    check(server.request("POST", "/v1/messages", {}, coded), 415, "invalid_request_error")
    status, _, text = server.request("GET", "/v1/nothing")
    assert status == 404 and "type" not in json.loads(text)


def test_too_large(server):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    )
    head, told = sock.recv(65536).decode().split("\r\n\r\n")
    assert " 413 " in head and json.loads(told)["error"]["type"] == "request_too_large"
    sock.close()


# clients that leave


def test_leaving_cancels(client, server):
    before = server.state()["n_cancelled"]
    with client.messages.stream(**body("drip 5")) as s:
        for _, _ in zip(range(3), s.text_stream):
            pass
    server.wait_for_state("n_running", 0, 5)
    assert server.state()["n_cancelled"] == before + 1

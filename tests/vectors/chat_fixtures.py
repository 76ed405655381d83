"""Conversations for the chat template tests, and the reference: Jinja2 set up as Hugging Face's transformers does."""
import datetime
import functools
import json

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

NOW_S = 1753628645  # 2025-07-27 15:04:05 UTC, a Sunday


class Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(fmt):
    return datetime.datetime.fromtimestamp(NOW_S, datetime.timezone.utc).replace(tzinfo=None).strftime(fmt)


@functools.lru_cache(maxsize=None)
def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


@functools.lru_cache(maxsize=8)
def compiled(template):
    return environment().from_string(template)


def reference(template, context):
    """The text, or None and the error where Jinja2 fails."""
    try:
        return compiled(template).render(**json.loads(json.dumps(context))), None
    except Exception as e:  # a template may raise whatever Python raises
        return None, str(e) or type(e).__name__


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather in a place, e.g. \"São Paulo\"",
    "parameters": {"type": "object", "required": ["place"], "properties": {
        "place": {"type": "string", "description": "City & country <ISO>"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "default": 3}}}}}
SEARCH = {"type": "function", "function": {
    "name": "search", "description": "Finds documents.\nReturns a list.",
    "parameters": {"type": "object", "required": ["query", "filters"], "properties": {
        "query": {"type": ["string", "null"], "description": "What to look for"},
        "limit": {"type": "number", "default": 0.5},
        "filters": {"type": "array", "items": {"type": "object", "properties": {"field": {"type": "string"}}}}},
        "additionalProperties": False}, "strict": True}}


def call(name, arguments, call_id="call00001", as_text=False):
    return {"id": call_id, "type": "function", "function": {
        "name": name, "arguments": json.dumps(arguments, ensure_ascii=False) if as_text else arguments}}


def _tool_turns(as_text):
    return [
        {"role": "system", "content": "Use the tools."},
        {"role": "user", "content": "Weather in Köln and Berlin?"},
        {"role": "assistant", "content": "", "tool_calls": [
            call("get_weather", {"place": "Köln", "unit": "celsius", "days": 2}, "call00001", as_text),
            call("get_weather", {"place": "Berlin", "days": None, "nested": {"a": [1, 2.5, True]}}, "call00002", as_text)]},
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"t\": 21.5}"},
        {"role": "tool", "tool_call_id": "call00002", "name": "get_weather", "content": "rain"},
        {"role": "assistant", "content": "21.5° and rain."},
        {"role": "user", "content": "Thanks!"},
    ]


CONVERSATIONS = {
    "user": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi there"}],
    "turns": [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": " Two. "},
        {"role": "user", "content": "Three?\n\n"}, {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Five?"}],
    "ends-with-assistant": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "said"}],
    "unicode": [
        {"role": "system", "content": "Ты помощник 🤖"},
        {"role": "user", "content": "naïve café ­ 漢字 \u2028 العربية 👩‍👩‍👧 <|im_end|> {{ 7 * 7 }} \\n \"quoted\" 'single' & <b>"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I see."}]},
        {"role": "user", "content": [{"type": "text", "text": "Good."}]}],
    "image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
    "thinking": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n4"},
        {"role": "user", "content": "3+3?"},
        {"role": "assistant", "reasoning_content": "Also easy.", "content": "6"},
        {"role": "user", "content": "4+4?"}],
    "tools": _tool_turns(False),
    "tools-text-arguments": _tool_turns(True),
    "tool-last": _tool_turns(False)[:5],
    "tool-call-null-content": [
        {"role": "user", "content": "Find it"},
        {"role": "assistant", "content": None, "tool_calls": [call("search", {"query": "it's \"x\" \\ y\n", "filters": []})]},
        {"role": "tool", "tool_call_id": "call00001", "name": "search", "content": "[]"}],
    "one-tool-call": [
        {"role": "user", "content": "Find it"},
        {"role": "assistant", "content": "Searching.", "tool_calls": [call("search", {"query": "q", "filters": [{"field": "f"}]})]},
        {"role": "tool", "tool_call_id": "call00001", "name": "search", "content": "found"},
        {"role": "assistant", "content": "Done."}, {"role": "user", "content": "More"}],
    "wrong-order": [{"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}],
    "unknown-role": [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}],
    "two-users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "developer": [{"role": "developer", "content": "Rules."}, {"role": "user", "content": "b"}],
    "empty": [],
    "empty-content": [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
}


def contexts():
    """(name, context) of every conversation, with and without tools, generation prompt and the usual extra switches."""
    for name, messages in CONVERSATIONS.items():
        base = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>"}
        yield name, {**base, "add_generation_prompt": True}
        yield name + "/closed", {**base, "add_generation_prompt": False, "tools": None, "documents": None}
        yield name + "/tools", {**base, "add_generation_prompt": True, "tools": [WEATHER, SEARCH]}
        yield name + "/tools-no-thinking", {**base, "add_generation_prompt": True, "tools": [SEARCH], "enable_thinking": False}
        yield name + "/thinking", {**base, "add_generation_prompt": True, "enable_thinking": True, "thinking": True,
                                   "reasoning_effort": "high", "date_string": "27 Jul 2025"}

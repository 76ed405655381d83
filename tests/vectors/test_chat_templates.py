"""Our chat templates against Jinja2: every template of templates/ with every conversation, and one snippet a feature.

Both must give the same text, or both must fail; the text of raise_exception must arrive. SHOAL_BUILD says where template_tool was
built (default: build/dev).
"""
import json
import os
import pathlib
import subprocess

import pytest

from chat_fixtures import NOW_S, contexts, reference

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("SHOAL_BUILD", HERE.parent.parent / "build" / "dev"))
TOOL = BUILD / "tests" / "vectors" / "template_tool"


class Tool:
    def __init__(self, path=TOOL):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def render(self, template, context):
        request = json.dumps({"template": template, "context": context, "now": NOW_S})
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.fixture(scope="module")
def tool():
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built")
    tool = Tool()
    yield tool
    tool.close()


def compare(tool, template, context, where):
    text, error = reference(template, context)
    ours = tool.render(template, context)
    assert ours.get("text") == text, f"{where}: Jinja2's error: {error}; ours: {ours.get('error')}"
    if ours.get("code") == "E_INVALID":
        assert ours["error"] == error, where
    return text is not None


@pytest.mark.parametrize("path", sorted((HERE / "templates").glob("*.jinja")), ids=lambda p: p.stem)
def test_template(tool, path):
    n_texts = 0
    for name, context in contexts():
        n_texts += compare(tool, path.read_text(), context, f"{path.name} with {name}")
    assert n_texts > 20  # a template that always fails proves nothing


VALUES = {
    "s": "  Hello, Wörld!  ", "t": "a,b,,c", "e": "", "lines": "one\ntwo\n\nthree\n", "x": "abc", "q": "it's \"so\"\n\t\\",
    "n": 7, "m": -7, "z": 0, "f": 2.5, "g": 1e16, "h": 0.00001, "big": 9007199254740993, "half": 0.1, "whole": 3.0,
    "yes": True, "no": False, "nil": None,
    "l": [3, 1, 2], "words": ["b", "A", "c", "a", "B"], "nested": [[1, 2], [3, [4, None]], "x"], "dup": [1, 2, 1, 3, 2],
    "d": {"b": 1, "a": {"k": [True, None, 1.5, "ü"]}, "items": "shadow", "get": 5}, "o": {},
    "people": [{"name": "Zoë", "age": 3, "tags": {"x": 1}}, {"name": "adam", "age": 5}, {"name": "Bob", "age": 3, "tags": None}],
}

SNIPPETS = """
{{ yes }} {{ no }} {{ nil }} {{ true }} {{ False }} {{ None }} {{ none }}
{{ n }} {{ f }} {{ g }} {{ h }} {{ half }} {{ whole }} {{ big }} {{ 1e300 }} {{ 1.0 }} {{ -0.5 }} {{ 100.0 / 3 }}
{{ l }} {{ nested }} {{ d }} {{ words }} {{ o }} {{ [q, x] }} {{ {'k': q, 1: nil} }}
{{ 'v=' ~ yes ~ nil ~ f ~ l ~ d ~ h ~ missing }}
{{ missing }}|{{ d.missing }}|{{ missing is defined }}|{{ d.missing is undefined }}|{{ l[9] }}|{{ x[9] }}
{{ missing.attribute }}
{{ missing['item'] }}
{{ missing() }}
{{ missing + 'x' }}
{{ 'x' + 1 }}
{{ x.nothing }}{{ nil.nothing }}
{{ missing | default('d') }} {{ e | default('d') }} {{ e | default('d', true) }} {{ nil | default('d') }} {{ nil | d('x', boolean=true) }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ -n }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 'ab' * 3 }}{{ [1, 2] * 2 }}{{ 'ab' * -1 }}{{ l + [9] }}{{ 3 * 'x' }}
{{ '%s is %d and %.2f %5s|%-5s|%05d' % ('x', 3, 2.345, 'r', 'l', 42) }} {{ '%s' % x }}
{{ '%s-%s' | format(x, n) }} {{ '{} {} {}'.format(x, n, f) }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{k:>6}|{v:.1f}'.format(k='a', v=2.55) }}
{{ x == 'abc' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ nil == missing }} {{ l == [3, 1, 2] }} {{ l != [3] }} {{ d == {} }} {{ '1' == 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 2 >= 2.0 }}
{{ 'a' < 1 }}
{{ nil < 1 }}
{{ 'b' in x }} {{ 3 in l }} {{ 'a' in d }} {{ 'zz' not in d }} {{ 'x' in missing }} {{ not 3 in l }}
{{ 1 in x }}
{{ 1 in nil }}
{{ 1 and 0 }} {{ 0 or '' or 'z' }} {{ '' and 'x' }} {{ not e }} {{ x and n }} {{ e or missing or 'last' }} {{ 1 and 2 }}
{{ 'y' if n > 5 else 'n' }} {{ 'y' if n > 9 }}| {{ ('a' if no else 'b') ~ 'c' }}
{{ x[0] }}{{ x[-1] }}{{ x[1:] }}{{ x[:-1] }}{{ x[::-1] }}{{ x[5:] }}{{ x[-2:] }}{{ x[::2] }}{{ s[2:7] }}
{{ l[0] }}{{ l[-1] }}{{ l[1:] }}{{ l[:-1] }}{{ l[::-1] }}{{ l[5:] }}{{ l[-2:] }}{{ l[::2] }}{{ l[1:][0] }}{{ l[2:0:-1] }}{{ l[:-5:-1] }}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcabc'.lstrip('ab') }}|{{ x.rstrip('bc') }}
{{ t.split(',') }} {{ s.split() }} {{ t.split(',', 1) }} {{ t.rsplit(',', 1) }} {{ s.split(None, 1) }} {{ t.split(',', maxsplit=2) }} {{ e.split() }} {{ e.split(',') }} {{ s.rsplit(None, 1) }} {{ t.split(sep=',') }}
{{ t.split(',')[-1] }} {{ '<think>a</think>b'.split('</think>')[0].split('<think>')[-1] }} {{ 'a</x>b'.split('</x>', 1)[1] }}
{{ lines.splitlines() }} {{ lines.splitlines(true) }} {{ 'a\\r\\nb\\rc'.splitlines() }}
{{ x.startswith('ab') }} {{ x.endswith('bc') }} {{ x.startswith(('z', 'a')) }} {{ x.startswith('b', 1) }} {{ e.startswith('') }}
{{ x.upper() }} {{ s.lower() }} {{ x.capitalize() }} {{ s.title() }} {{ 'they\\'re x1y'.title() }} {{ x.swapcase() }}
{{ x.replace('b', 'zz') }} {{ t.replace(',', '') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ x.replace('', '-') }}
{{ x.find('c') }} {{ x.find('z') }} {{ 'äöü'.find('ü') }} {{ x.index('b') }} {{ t.count(',') }} {{ t.rfind(',') }} {{ dup.count(1) }} {{ dup.index(2) }}
{{ x.index('zz') }}
{{ x.isdigit() }} {{ '12'.isdigit() }} {{ e.isdigit() }} {{ x.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'A'.isupper() }} {{ 'a1'.islower() }} {{ '1'.islower() }} {{ 'x'.isascii() }}
{{ ','.join(words) }} {{ x.zfill(5) }} {{ '-4'.zfill(4) }} {{ x.center(8, '*') }} {{ x.ljust(5) }}| {{ x.rjust(5, '.') }} {{ x.removeprefix('a') }} {{ x.removesuffix('bc') }}
{{ x.partition('b')[2] }} {{ x.partition('z')[0] }} {{ 'a-b-c'.rpartition('-')[0] }}
{{ ', '.join([1]) }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }};{% endfor %} {% for k in d.keys() %}{{ k }}{% endfor %} {% for v in d.values() %}{{ v }},{% endfor %}
{{ d.get('b') }} {{ d.get('zz') }} {{ d.get('zz', 4) }} {{ d['items'] }} {{ d['a']['k'][3] }} {{ d.a.k | length }} {{ o.get('a', {}).get('b') }}
{% for k, v in d | items %}{{ k }}{% endfor %}{% for k, v in missing | items %}{{ k }}{% endfor %}{% for k, v in {'z': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'z': 1, 'a': 2} | dictsort(by='value') %}{{ k }}{{ v }}{% endfor %}
{{ l.append(4) }}
{{ d.update({'x': 1}) }}
{{ d.pop('b') }}
{{ l | length }} {{ d | length }} {{ 'äö' | length }} {{ missing | length }} {{ l | count }} {{ range(5) | length }}
{{ n | length }}
{{ nil | length }}
{{ l | first }} {{ l | last }} {{ [] | first }}| {{ l | max }} {{ l | min }} {{ l | sum }} {{ people | sum(attribute='age') }} {{ x | last }}
{{ l | sort }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ l | sort(reverse=true) }} {{ people | sort(attribute='age') | map(attribute='name') | join(',') }}
{{ dup | unique | list }} {{ words | unique | list }} {{ l | reverse | list }} {{ x | reverse }} {{ x | list }} {{ d | list }} {{ missing | list }} {{ l | batch(2) | list }} {{ l | batch(2, 0) | list }}
{{ words | join(' ') }} {{ l | join }} {{ people | join(', ', attribute='name') }} {{ [nil, 1, 'a', 2.5, [1]] | join('-') }} {{ [] | join(',') }} {{ missing | join(',') }}
{{ nil | join(',') }}
{{ nil | first }}
{{ nil | list }}
{{ ('<b>' | safe) + '<i>' + x }} {{ '<' + ('>' | safe) }} {{ ('<' | e) + '&' }} {{ ('<' | safe) ~ '<' }}
{{ words | map('upper') | join }} {{ people | map(attribute='name') | list }} {{ people | map(attribute='tags.x', default='-') | join }} {{ words | map('replace', 'a', 'z') | list }} {{ [' a ', 'b '] | map('trim') | list }}
{{ people | selectattr('age', 'equalto', 3) | map(attribute='name') | list }} {{ people | selectattr('tags') | list | length }} {{ people | selectattr('tags', 'defined') | list | length }} {{ people | rejectattr('age', '>', 3) | list | length }} {{ people | selectattr('name', 'in', ['Bob']) | list | length }}
{{ l | select('odd') | list }} {{ l | reject('equalto', 1) | list }} {{ [0, 1, nil, ''] | select | list }} {{ ['a', 1] | select('string') | list }}
{{ s | trim }}| {{ 'xax' | trim('x') }} {{ x | upper }} {{ 'ÄB' | lower }} {{ 'heLLo wORLD-wide' | title }} {{ 'heLLo' | capitalize }} {{ x | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 1) }} {{ x | center(9) }}|
{{ lines | indent }}| {{ lines | indent(2, true) }}| {{ lines | indent(2, blank=true) }}| {{ 'a\\nb' | indent('> ') }} {{ lines | indent(width=1, first=true) }}
{{ '42' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ '3.9' | int }} {{ f | int }} {{ true | int }} {{ nil | int }} {{ '2.5' | float }} {{ 3 | float }} {{ 'z' | float(1.5) }} {{ 'ff' | int(0, 16) }} {{ '0x1f' | int(base=16) }}
{{ 2.345 | round(2) }} {{ 2.5 | round }} {{ 7 | round }} {{ 2.1 | round(method='ceil') }} {{ 2.678 | round(1, 'floor') }} {{ 3.5 | round | int }} {{ m | abs }} {{ 0.5 | round }}
{{ n | string }} {{ l | string }} {{ nil | string }} {{ f | string ~ 'x' }} {{ x | safe }} {{ '<a href="x">&\\'' | e }} {{ '<' | escape }} {{ 'one two  three' | wordcount }}
{{ 'a long sentence that is cut' | truncate(12) }} {{ 'a long sentence that is cut' | truncate(12, true) }} {{ 'short' | truncate(12) }} {{ 'a long sentence that is cut' | truncate(12, end='!', leeway=0) }}
{{ d | tojson }} {{ nested | tojson }} {{ q | tojson }} {{ s | tojson }} {{ nil | tojson }} {{ yes | tojson }} {{ [f, g, h, whole, big, half] | tojson }} {{ '</script>\\u2028\\x7f' | tojson }} {{ {1: 2, none: 3, false: 4, 1.5: 5} | tojson }}
{{ d | tojson(indent=2) }} {{ nested | tojson(indent=4) }} {{ o | tojson(indent=2) }} {{ none | tojson(indent=2) }} {{ d | tojson(indent=0) }} {{ d | tojson(indent='\\t') }}
{{ d | tojson(ensure_ascii=true) }} {{ '😀é' | tojson(ensure_ascii=true) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ d | tojson(separators=(',', ':')) }} {{ l | tojson(indent=2, separators=(',', ': ')) }}
{{ missing | tojson }}
{{ x is string }} {{ n is number }} {{ true is number }} {{ f is float }} {{ n is integer }} {{ true is integer }} {{ d is mapping }} {{ l is sequence }} {{ x is sequence }} {{ d is sequence }} {{ n is sequence }} {{ x is iterable }} {{ nil is iterable }} {{ missing is iterable }} {{ l is iterable }} {{ n is iterable }}
{{ nil is none }} {{ missing is none }} {{ yes is true }} {{ 1 is true }} {{ no is false }} {{ no is boolean }} {{ 0 is boolean }} {{ x is not defined }} {{ 3 is odd }} {{ 3 is even }} {{ 6 is divisibleby(3) }} {{ 6 is divisibleby 4 }} {{ 'ab' is lower }} {{ 'AB' is upper }} {{ x is sameas x }} {{ 1 is eq 1 }} {{ 1 is in [1] }} {{ x is in(x) }} {{ n is gt 3 }} {{ missing is sequence }}
{{ l is mapping }} {{ l is string }} {{ range(2) is sequence }} {{ 'upper' is filter }} {{ 'odd' is test }} {{ 'nosuch' is filter }}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for i in none %}x{% else %}empty{% endfor %} {% for i in missing %}x{% else %}empty{% endfor %} {% for c in x %}{{ c }}.{% endfor %} {% for i in l if i > 1 %}{{ i }}{{ loop.index }}{% else %}no{% endfor %}
{% for i in nil %}x{% endfor %}
{% for i in n %}x{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %} {{ range(3) | list }} {{ range(1, 8, 3) | list }} {{ range(3, 0, -1) | list }}
{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %} {% for row in nested if row is not string %}{% for v in row %}{{ loop.index }}{{ v }}{% endfor %}{% endfor %}
{% for i in range(100001) %}{% endfor %}
{% set v = 1 %}{% for i in l %}{% set v = v + i %}{{ v }}{% endfor %}{{ v }} {% if true %}{% set v = 9 %}{% endif %}{{ v }}
{% set ns = namespace(a=0, b='') %}{% for i in l %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b ~ i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.missing }} {% set ns.l = ns.b ~ 'x' %}{{ ns.l }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c %}block {{ x }}{% endset %}{{ c }}|{{ c | upper }} {% set c | upper %}up{% endset %}{{ c }}
{% macro m(a, b='B', c=nil) %}[{{ a }}{{ b }}{{ c }}{{ caller is defined }}{{ x }}]{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}{{ m(b=5, a=6) }}{{ m() }}
{% macro m(a) %}<{{ a }}:{{ caller('in') }}>{% endmacro %}{% call(v) m(1) %}body {{ v }}{{ x }}{% endcall %} {% macro w() %}({{ caller() }}){% endmacro %}{% call w() %}plain{% endcall %}
{% macro f(k) %}{% if k > 0 %}{{ k }},{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(5) }} {% set r = f(2) %}{{ r | trim(',') }} {{ f(3).split(',') }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}deep{% endmacro %}{{ a() }} {{ a.name }}
{% filter upper %}text {{ x }}{% endfilter %} {% raw %}{{ not }} {% parsed %}{% endraw %} {# comment #}{#- trimmed -#} end
{% with a = 1, b = x %}{{ a }}{{ b }}{% endwith %}{{ a }}
   {% if true %}   \n   yes\n   {% endif %}   \n  {%- if true -%}  \n  tight  \n {%- endif %}\n  {%+ if true %} kept {% endif +%}\n end
{{- x -}}   \n   {{ x }}\n\n
a {%- set k = 1 %} b\n{% set k = 2 -%}   c\n{# note #}\nd
{% if no %}a{% elif n == 7 %}b{% elif yes %}c{% else %}d{% endif %}{% if not missing %}e{% endif %}{% if x is defined and x %}f{% endif %}
{{ raise_exception('Sorry, "' ~ x ~ '" — no: ' ~ l) }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %d %B %b %A %a %j %p %I %y %e %-d %-m %U %W %w %u %% %F %T %D %c %f') }}
{% generation %}said {{ x }}{% endgeneration %} {%- generation -%}  tight  {%- endgeneration -%} {% for i in l %}{% generation %}{{ i }}{% endgeneration %}{% endfor %}
{% do l.append(1) %}
{% include 'x' %}
{{ x | nosuchfilter }}
{{ x is nosuchtest }}
{{ nosuchfunction() }}
{% if %}
{{ 'unterminated }}
{{ (1, 2)[0] }}{{ (1,) | length }}{{ () | length }}{{ ('a', 'b') | join('+') }} {{ 'a' 'b' }} {{ "\\"d\\" \\u00e9 \\x41 \\n" }} {{ 'tab\\there' }}
{{ {'a': 1}.a }}{{ {'a': {'b': 2}}['a'].b }}{{ [1, [2, 3]][1][0] }}{{ 'abc'[1] }}{{ dict(a=1, b=2) }}{{ dict(a=1).get('a') }} {{ {'x': 1} | tojson }}
{{ 5.0 | int }}{{ 1_000 }}{{ 0x1f }}{{ 1e3 }}
{{ people | groupby('age') | map('first') | list }}{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}
{{ lines | trim | length }} {{ (x ~ n) | upper }} {{ x ~ n | string }} {{ -5 | abs }} {{ not 1 == 2 }} {{ 2 + 3 * 4 ** 2 }} {{ 10 - 2 - 3 }} {{ 'a' ~ 1 + 2 }} {{ 1 if yes else 2 if no else 3 }}
{{ messages[0]['role'] }}{{ messages[-1].content }}{% for m in messages[1:] %}{{ m.role }}{% endfor %}{{ messages | length }}
"""
SNIPPETS = [line.replace("\\n", "\n") if "{%" in line and "'" not in line else line for line in SNIPPETS.strip().split("\n")]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(tool, snippet):
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    compare(tool, snippet, {**VALUES, "messages": messages}, snippet)

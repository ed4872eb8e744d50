"""ChatTemplate: prompts as jinja2 and transformers make them, origins that never get lost, and limits that hold."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

import offgrid_llama.chat.template as package
from offgrid_llama.chat import ChatTemplate, PromptPart
from offgrid_llama.errors import ChatTemplateError

NOW = datetime(2026, 10, 1, 12, 34, 56)
FOLDER = Path(__file__).parents[3] / "vendor" / "llama.cpp" / "models" / "templates"
NAMES = sorted(path.name for path in FOLDER.glob("*.jinja"))
TOKENS: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>"}
Messages = list[dict[str, Any]]


# The oracle: jinja2's own sandbox, set up as the documentation of transformers describes it, and nothing else.
class Generation(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Any) -> Any:
        return caller()


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def plain_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    # There `"a"|safe + b` escapes b for HTML, which no template wants (functionary v3.1 does it). Here safe does nothing.
    environment.filters["safe"] = str
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    return environment


PLAIN = plain_environment()


def nested(depth: int) -> Any:
    """Return a list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@functools.cache
def compiled(name: str) -> tuple[ChatTemplate, jinja2.Template]:
    source = (FOLDER / name).read_text(encoding="utf-8")
    return ChatTemplate(source, name=name, **TOKENS), PLAIN.from_string(source)


def oracle(template: jinja2.Template, messages: Messages, **variables: Any) -> str | None:
    """Render without any of our code; None where the template raises."""
    values = {"tools": None, "documents": None, "add_generation_prompt": True, **TOKENS, **variables}
    try:
        return template.render(messages=messages, **values)
    except Exception:
        return None


@pytest.fixture(autouse=True)
def _the_time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    from offgrid_llama.chat.template import filters

    monkeypatch.setattr(filters, "now", lambda: NOW)


def tools(text: str) -> Messages:
    city = {"type": "string", "description": f"{text} where", "enum": [f"Z\u00fcrich {text}", text]}
    parameters = {
        "type": "object",
        "properties": {"city": city, f"days_{text}": {"type": "array", "items": {"type": "integer"}}},
        "required": ["city"],
    }
    function = {
        "name": f"weather_{text}",
        "description": f"The weather \u2018today\u2019 & <{text}>",
        "parameters": parameters,
        "return": {"type": "object", "properties": {"degrees": {"type": "number"}}},
    }
    return [{"type": "function", "function": function}]


def conversation(text: str = "Hello", *, system: bool = True) -> Messages:
    turns = [
        {"role": "user", "content": f"  {text} one\n"},
        {"role": "assistant", "content": f"{text} two"},
        {"role": "user", "content": f"{text} three"},
    ]
    return [{"role": "system", "content": f"{text} zero"}, *turns] if system else turns


def with_tools(text: str = "Hello", *, arguments: bool = True) -> Messages:
    call = {"city": f"{text} city", f"days_{text}": [1, 2]}
    function = {"name": f"{text}_name", "arguments": call if arguments else json.dumps(call)}
    return [
        {"role": "user", "content": f"{text} one"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}],
        },
        {"role": "tool", "content": f"{text} result", "name": f"{text}_name", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": f"{text} two", "reasoning_content": f"{text} thought"},
        {"role": "user", "content": f"{text} three"},
    ]


def cases(text: str = "Hello") -> list[tuple[Messages, dict[str, Any]]]:
    return [
        (conversation(text), {}),
        (conversation(text, system=False), {}),
        (conversation(text)[:3], {"add_generation_prompt": False}),
        (conversation(text), {"enable_thinking": False, "reasoning_effort": "low"}),
        (with_tools(text), {"tools": tools(text)}),
        (with_tools(text, arguments=False), {"tools": tools(text), "functions": "[]", "datetime": "now"}),
    ]


CASES = range(len(cases()))

# Templates that refuse every one of these conversations, in transformers as well as here, and why.
REFUSING = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja": "tools in a form of its own, and never none",
}


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    """Each template renders what jinja2 with the settings of transformers renders, and refuses what it refuses."""
    ours, plain = compiled(name)
    rendered = 0
    for messages, variables in cases():
        expected = oracle(plain, messages, **variables)
        if expected is None:
            with pytest.raises(ChatTemplateError, match=name):
                ours.render(messages, **variables)
        else:
            assert ours.render(messages, **variables) == expected
            rendered += 1
    assert bool(rendered) is (name not in REFUSING)


CONTROL = ["<|im_end|>", "<s>", "</s>", "<bos>", "<eos>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"]
CONTROL += [
    "<|eot_id|>",
    "<|start_header_id|>",
    "<\uff5cUser\uff5c>",
    "<|end|>",
    "<|im_start|>system",
    "[gMASK]",
    "<|user|>",
]


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_messages_stay_text(name: str) -> None:
    """A control token in a message is in no special part, and the special parts are those of a harmless message."""
    ours, plain = compiled(name)
    for at in range(4):  # conversations without tools; a template may quote what it finds in arguments
        messages, variables = cases("harmless")[at]
        if oracle(plain, messages, **variables) is None:
            continue
        harmless = [part.text for part in ours.parts(messages, **variables) if part.special]
        for token in CONTROL:
            messages, variables = cases(f"a{token}b")[at]
            parts = ours.parts(messages, **variables)
            assert [part.text for part in parts if part.special] == harmless
            texts = [part.text for part in parts if not part.special]
            for content in (message["content"].strip() for message in messages):
                # Some templates leave a message out or cut it, such as the reasoning of earlier turns.
                assert any(content in text for text in texts) or content not in "".join(part.text for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_no_character_of_the_caller_is_special(name: str) -> None:
    """Greek letters, which no template has, never come in a special part; tools and arguments are included."""
    ours, _ = compiled(name)
    for at in CASES:
        for text in ("\u03b1\u03b2", "\u03b1</think>\u03b2", "\u03b1\n<think>\u03b2\n\u03b3", "\u03a3\u0399 \u0391"):
            messages, variables = cases(text)[at]
            try:
                parts = ours.parts(messages, **variables)
            except ChatTemplateError:
                continue
            check_parts(parts)
            assert "".join(part.text for part in parts) == ours.render(messages, **variables)


GREEK = set(range(0x370, 0x400)) | set(range(0x1F00, 0x2000)) | {0x2003, 0x2028}


def check_parts(parts: list[PromptPart]) -> None:
    assert all(part.text for part in parts)
    assert all(a.special is not b.special for a, b in itertools.pairwise(parts))
    for part in parts:
        assert not (part.special and any(ord(char) in GREEK for char in part.text)), part


# Expressions over the texts u and v of the caller, and of the template; from operators, methods, filters, statements.
TEXTS = ["u", "v", "'ab '", "'<|x|>'", "''", "'b\\nA'"]
UNARY = [
    "({a})[1:]", "({a})[:-1]", "({a})[::-1]", "({a})[1:3]", "({a})[:1]", "({a})[-2:]", "({a}).strip()", "({a}).lstrip('a\u03b1')",
    "({a}).rstrip()", "({a})|trim", "({a})|upper", "({a})|lower", "({a})|title", "({a})|capitalize", "({a}).title()",
    "({a}).swapcase()", "({a}).casefold()", "({a})|indent", "({a})|indent(2, true, true)", "({a}) * 2", "2 * ({a})", "({a})|list|join",
    "({a})|reverse|join('.')", "({a})|string", "({a})|tojson", "[{a}, 1]|string", "[{a}]|tojson(indent=2)", "({a})|first|default('-')",
    "({a})|last|default('-')", "({a})|sort|join", "({a})|unique|join", "({a}).center(9)", "({a})|center(12)", "({a}).zfill(5)",
    "({a}).ljust(7, '.')", "({a}).splitlines()|join('|')", "({a}).splitlines(true)|join('|')", "({a}).split()|join('|')",
    "({a}).split(none, 1)|last|default('')", "({a}).rsplit(none, 1)|first|default('')", "({a})|safe", "'%-5s|%%' % ({a})",
    "'{{}}:{{:>4}}'.format({a}, 1)", "'{{x[0]}}{{{{}}}}'.format(x=[{a}])", "({a})|map('upper')|join", "[{a}]|map('trim')|first",
    "{{'k': {a}}}.k", "{{{a}: 1}}|items|first|first", "{{{a}: {a}}}|dictsort|last|last", "dict(k={a}).values()|join", "[[{a}]]|sum(start=['z'])|join",
    "m({a})", "'%s' % [{a}]", "({a}) ~ none ~ 1.5 ~ true", "(({a})|e) ~ ''", "({a}).removeprefix('\u03b1').removesuffix('b')",
]  # fmt: skip
BINARY = [
    "({a}) ~ ({b})", "({a}) + ({b})", "({a}).replace('a', {b})", "({a})|replace('\u03b1', {b})", "({a})|replace({b}, '<|y|>')",
    "({a}).replace('', {b}, 2)", "({a}).replace({b}, '', 1)", "({a}).join([{b}, {a}, 'z'])", "[{a}, {b}]|join('<|j|>')",
    "[{a}, {b}]|join({b})", "({a}).split('a')|join({b})", "({a}).split('\u03b1', 1)|last ~ ({b})", "({a}).rsplit('b', 1)[0] ~ {b}",
    "({a}).partition('b')|join({b})", "({a}).rpartition('\u03b2')|last ~ {b}", "'%s<|p|>%s' % ({a}, {b})",
    "'%(x)s%(y)s' % {{'x': {a}, 'y': {b}}}", "'{{1}}<|f|>{{0}}'.format({a}, {b})", "'%s-%s'|format({a}, {b})",
    "(({a}) ~ '{{}}').format({b})", "(({a}) ~ '%s') % ({b})", "({a})|default({b}, true)", "({a}) if ({b}) else 'none'", "[{a}, {b}]|min", "[{a}, {b}]|max", "[{a}, {b}]|sort|first",
    "({a})|indent({b})", "[{a}, {b}]|select('string')|list|last", "[{a}, {b}]|reject('in', {b})|join", "({a}) or ({b})", "m({a}, {b})",
    "(({a}) in ({b}))|string", "({a}).startswith({b})|string", "({a}).find({b})|string", "({a}).count('a') ~ ({b})", "[{a}, {b}]|map('replace', 'a', {b})|join",
    "({a}).strip({b})", "n({a})", "({a}).format({b}) if '{{' not in ({a}) else ''", "[{{'t': {a}}}, {{'t': {b}}}]|map(attribute='t')|join('-')",
    "[{{'t': {a}}}]|selectattr('t', 'eq', {b})|list|tojson", "({a})[:1] ~ ({b})[1:]", "{{{a}: {b}}}|tojson(sort_keys=true)",
]  # fmt: skip
STATEMENTS = [
    "{{{{ {a} }}}}", "{{% set x %}}<{{{{ {a} }}}}>{{% endset %}}{{{{ x[1:] }}}}", "{{% for c in {a} %}}{{{{ c ~ loop.index }}}}{{% endfor %}}",
    "{{% filter upper %}}x{{{{ {a} }}}}{{% endfilter %}}", "{{% call c() %}}{{{{ {a} }}}}{{% endcall %}}",
    "{{% for c in [{a}] recursive %}}{{{{ c }}}}{{% if loop.depth < 2 %}}{{{{ loop([{a}]) }}}}{{% endif %}}{{% endfor %}}",
    "{{% set s = namespace(x={a}) %}}{{% set s.x = s.x ~ s.x %}}{{{{ s.x }}}}", "{{% with x = {a} %}}{{{{ x }}}}{{% endwith %}}",
    "{{% if {a} %}}<|t|>{{{{ {a} }}}}{{% else %}}-{{% endif %}}", "{{% set x | trim %}} {{{{ {a} }}}} {{% endset %}}{{{{ x }}}}",
    "{{% set x, y = {a}, 'y' %}}{{{{ y ~ x }}}}", "{{% generation %}}{{{{ {a} }}}}{{% endgeneration %}}", "{{{{ {{{a}: 1}} }}}}",
    "{{% block b %}}{{{{ u }}}}{{% endblock %}}{{{{ self.b()|lower }}}}", "{{{{ m(**{{{a}|string: 1}}) }}}}",
]  # fmt: skip
MACROS = """{% macro m(p, q='-') %}[{{ p }}{{ q }}{{ varargs|join }}{% for k in kwargs %}{{ k }}{% endfor %}]{% endmacro %}
{%- macro n(p) %} {{ p }}<|n|>{{ p|length }} {% endmacro %}{% macro c() %}({{ caller() }}){% endmacro %}"""
expressions = st.recursive(
    st.sampled_from(TEXTS),
    lambda inner: st.one_of(
        st.builds(lambda form, a: f"({form.format(a=a)})", st.sampled_from(UNARY), inner),
        st.builds(lambda form, a, b: f"({form.format(a=a, b=b)})", st.sampled_from(BINARY), inner, inner),
    ),
    max_leaves=4,
)
programs = st.builds(lambda form, a: MACROS + form.format(a=a), st.sampled_from(STATEMENTS), expressions)
of_caller = st.text(alphabet="\u03b1\u03b2\u0391\u03c3\u1fb3\u2003\u2028", max_size=6)


def user_text(u: str, v: str) -> Messages:
    return [{"role": "user", "content": u, "name": v}]


SET = "{% set u = messages[0].content %}{% set v = messages[0].name %}"


@settings(max_examples=600, deadline=None)
@given(programs, of_caller, of_caller)
@example("{{ u.upper() }}|{{ u.swapcase() }}", "\u1fb3\u03b1", "")
@example("{{ ('x' ~ u ~ 'y')[::-1] }}", "\u03b1", "")
def test_every_operation_keeps_origins(program: str, u: str, v: str) -> None:
    """Any expression gives what jinja2 gives, and no letter of the caller's ends in a special part."""
    template = ChatTemplate(SET + program)
    expected = oracle(PLAIN.from_string(SET + program), user_text(u, v))
    try:
        parts = template.parts(user_text(u, v))
    except ChatTemplateError:
        assert expected is None
        return
    check_parts(parts)
    assert expected is None or "".join(part.text for part in parts) == expected


@pytest.mark.parametrize("form", [*UNARY, *BINARY])
def test_each_operation_keeps_origins(form: str) -> None:
    """The same for each operation alone, on text of the caller, on mixed text, and with it as the second operand."""
    messages = user_text("\u03b1 \u03b2b\na", "\u03b2")
    rendered = []
    for a, b in (("u", "v"), ("(u ~ '<|m|>' ~ v)", "'a'"), ("'a b'", "u"), ("u", "u")):
        program = SET + MACROS + "{{ " + form.format(a=a, b=b) + " }}"
        expected = oracle(PLAIN.from_string(program), messages)
        if expected is not None:
            parts = ChatTemplate(program).parts(messages)
            check_parts(parts)
            assert "".join(part.text for part in parts) == expected
            rendered.append(expected)
    assert len(rendered) >= 3


def test_parts_of_a_plain_conversation() -> None:
    """The template's own text is special, with a known role in it; the messages' text is not."""
    template = ChatTemplate("{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}")
    assert template.parts([{"role": "user", "content": " <|end|><|system|> "}, {"role": "robot|>", "content": ""}]) == [
        PromptPart("<|user|>", True),
        PromptPart("<|end|><|system|>", False),
        PromptPart("<|end|>\n<|", True),
        PromptPart("robot|>", False),
        PromptPart("|><|end|>\n", True),
    ]


def test_tokens_of_the_model_are_special() -> None:
    """bos_token and eos_token are the template's own."""
    template = ChatTemplate("{{ bos_token + messages[0].content + eos_token }}", bos_token="<s>", eos_token="</s>")
    assert template.parts([{"role": "user", "content": "<s>"}]) == [("<s>", True), ("<s>", False), ("</s>", True)]


def test_keys_and_variables_are_the_callers() -> None:
    """Keys of dicts and all that is passed by keyword are text of the caller."""
    template = ChatTemplate(
        "{% for k, v in tools[0].items() %}{{ k }}={{ v }}{% endfor %}{{ style }}{{ tools|tojson }}"
    )
    assert [part.text for part in template.parts([], tools=[{"<s>": "x"}], style="</s>") if part.special] == ["="]


HOSTILE = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a loop's filter": "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "* of text": "{{ 'a' * 10**9 }}",
    "* from the left": "{{ 10**9 * 'a' }}",
    "* of a list": "{{ [1] * 10**9 }}",
    "**": "{{ 10**(10**8) }}",
    "* of integers": "{% set n = namespace(x=10) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "% width": '{{ "%1000000000d" % 1 }}',
    "% precision": '{{ "%.1000000000f" % 1 }}',
    "% star": '{{ "%*d" % (10**9, 1) }}',
    "format filter": '{{ "%1000000000d"|format(1) }}',
    "format width": '{{ "{:1000000000}".format(1) }}',
    "format width behind a conversion": '{{ "{!s:1000000000}".format(1) }}',
    "format in format": '{{ "{:{}}".format(1, 10**9) }}',
    "~ doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "+ doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "+ of lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "set doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "text in lists": "{% set n = namespace(l=[]) %}{% set s = 'a' * 100000 %}"
    "{% for i in range(100000) %}{% set n.l = n.l + [s[i:]] %}{% endfor %}",
    "a list of elements": "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = n.l + [["
    + "i," * 1000
    + "]] %}{% endfor %}",
    "a chain of lists": "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = [n.l, ["
    + "i," * 1000
    + "]] %}{% endfor %}",
    "text in keys": "{% set n = namespace(d={}) %}{% for i in range(9999) %}{% set n.d = "
    "dict(n.d, **{'a' * 10000 ~ i: i}) %}{% endfor %}",
    "a shared list": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "a shared list as text": "{% set n = namespace(x=['a' * 1000]) %}{% for i in range(16) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "a shared list as JSON": "{% set n = namespace(x=['a' * 1000]) %}{% for i in range(16) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
    "varargs": "{% macro m(n) %}{{ m(n, varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "kwargs": "{% macro m() %}{{ m(a=kwargs, b=kwargs) }}{% endmacro %}{{ m() }}",
    "a deep tuple": "{% set n = namespace(x=(1,)) %}{% for i in range(99999) %}{% set n.x = (n.x,) %}{% endfor %}"
    "{{ {n.x: 1} }}",
    "deep iterators": "{% set n = namespace(x=[1]) %}{% for i in range(99999) %}{% set n.x = n.x|map('string') %}"
    "{% endfor %}{{ 1 / 0 }}",
    "a macro in itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro twice in itself": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a wide recursive loop": "{% for x in range(9) recursive %}{% if loop.depth < 50 %}{{ loop(range(9)) }}{% endif %}"
    "{% endfor %}",
    "a recursive loop over text": "{% for x in [1] recursive %}{% if loop.depth == 1 %}{{ loop('a' * 8000000) }}"
    "{% endif %}{% endfor %}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ range(100000)|join('b' * 100000) }}",
    "join method": "{{ ('b' * 100000).join(['x'] * 10000) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a'|indent(10**9, true) }}",
    "indent with text": "{{ ('a\n' * 50000)|indent('x' * 100000) }}",
    "lower": "{{ ('\u0390' * 2700000)|upper }}",
    "title": "{{ ('a b ' * 2000000)|title }}",
    "escape": "{{ ('<' * 8000000)|e }}",
    "wordwrap": "{{ ('a b ' * 50000)|wordwrap(1, true, 'x' * 100000) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "xmlattr": "{{ {'a': 'x' * 8000000}|xmlattr }}",
    "tojson indent": "{{ [1]|tojson(indent=10**9) }}",
    "tojson separators": "{{ [1, 2]|tojson(separators=('x' * 10**6, 'y')) }}",
    "tojson escapes": "{{ ('\x01' * 8000000)|tojson }}",
    "text of a list": "{{ ['\x01' * 8000000]|string }}",
    "text of integers": "{{ [10**1200] * 30000 }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "round down": "{{ 5|round(-(10**9)) }}",
    "lipsum": "{{ lipsum(n=10**8) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "letters": "{% for c in 'a' * 8000000 %}{% endfor %}",
    "list of letters": "{{ ('a' * 8000000)|list|length }}",
    "sort": "{{ ('a' * 8000000)|sort|length }}",
    "split": "{{ ('a' * 8000000).split('a')|length }}",
    "split at blanks": "{{ ('a ' * 4000000).split()|length }}",
    "splitlines": "{{ ('\n' * 8000000).splitlines()|length }}",
    "many splits": "{% set n = namespace(l=[]) %}{% set s = 'a,' * 50000 %}{% for i in range(100000) %}"
    "{% set n.l = n.l + [s.split(',')] %}{% endfor %}",
    "rfind": "{{ ('a' * 8000000).rfind('ab' ~ 'a' * 4000000) }}",
    "strip": "{{ ('a' * 8000000).strip('b' * 4000000 ~ 'a')|length }}",
    "sum of lists": "{{ ([[1]] * 100000)|sum(start=[])|length }}",
    "comparisons": "{% set s = 'a' * 8000000 %}{% set t = 'a' * 7999999 ~ 'a' %}{% for i in range(100000) %}"
    "{% if s == t %}{% endif %}{% endfor %}",
    "searches": "{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "tests": "{% set s = 'a' * 8000000 %}{% for i in range(100000) %}{% if 'b' is in s %}{% endif %}{% endfor %}",
    "keys": "{% set t = ((1,) * 100000,) %}{% set d = {} %}{% for i in range(100000) %}{% if d[t] %}{% endif %}"
    "{% endfor %}",
    "output": "{% set s = 'a' * 100000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
    "constant output": "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
    "output of a macro": "{% macro m() %}{% for i in range(100000) %}{{ caller() }}{{ caller() }}{% endfor %}"
    "{% endmacro %}{% call m() %}" + "x" * 1000 + "{% endcall %}",
    "constants in a macro": "{% macro m() %}{% for i in range(100000) %}"
    + "x{% if 1 %}{% endif %}" * 1000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "a filter block": "{% filter upper %}{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}{% endfilter %}",
    "names of attributes": "{{ [1]|map(attribute='.' * 8000000)|list }}",
    "a hook by name": "{% for i in range(100000) %}{{ [-1000000000]|map('\\x00output')|list }}{% endfor %}",
    "many arguments": "{% macro m() %}{{ m(*varargs) }}{% endmacro %}{{ m(*range(100000)) }}",
    "cycle": "{% for i in range(100000) %}{{ loop.cycle(*range(100000)) }}{% endfor %}",
    "changed": "{% for i in range(100000) %}{% if loop.changed(range(100000)|list) %}{% endif %}{% endfor %}",
    "views": "{{ {'a': 1}.keys() - {'a': 1}.keys() }}",
    "strftime": "{{ strftime_now('%c' * 100000) }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "a class by format": "{{ '{0.__class__.__mro__}'.format('')[0][0] }}",
    "a class by format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "a class by attr": "{{ ''|attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__.x }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'os' as x %}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape true %}{{ messages[0].content }}{% endautoescape %}",
    "nesting": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "a long sum": "{{ 1" + "+1" * 30000 + " }}",
    "ifs": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "elifs": "{% if 0 %}" + "{% elif 0 %}" * 8000 + "{% endif %}",
    "a long literal": "{% set x = [" + "1," * 60000 + "] %}",
    "a long template": "x" * 200_000,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_are_stopped(source: str) -> None:
    """A template that would take all time or memory gets an error soon, and less than 64 MB before it."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ChatTemplateError):
            ChatTemplate(source, max_seconds=0.5).render([{"role": "user", "content": "Hello"}])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64e6
    # Much more than the limit, for slow machines and for tracemalloc; what is not guarded takes minutes or for ever.
    assert time.process_time() - start < 10


def test_the_clock_is_read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one millisecond for each look at the clock, 2 s are over after 2,000 looks and at most 16 steps for each."""
    looks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(looks) / 1000)
    source = "{% for i in range(100000) %}{{ i }}{% if i > 90000 %}{{ raise_exception('late') }}{% endif %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="longer than 2 s"):
        ChatTemplate(source).render([])
    assert next(looks) <= 2003


def test_memory_comes_back() -> None:
    """Text that is no longer used does not count: rendering may make far more of it than may be alive at once."""
    source = "{% set s = 'a' * 1000000 %}{% for i in range(1000) %}{% set t = s ~ i %}{% endfor %}done"
    assert ChatTemplate(source, max_seconds=60).render([]) == "done"


def test_large_conversations_fit() -> None:
    """1,024 messages of 4 KB and a message of 4 MB are within the limits, also where the template gathers them."""
    source = (
        "{% set n = namespace(out='') %}{% for m in messages %}{% set n.out = n.out ~ '<|' ~ m.role ~ '|>' ~ m.content %}"
        "{% endfor %}{{ n.out | trim }}"
    )
    template = ChatTemplate(source, max_seconds=60, max_steps=10_000_000)
    many = [{"role": "user", "content": "text" * 1000} for _ in range(1024)]
    assert len(template.render(many)) == 1024 * 4008
    assert len(template.render([{"role": "user", "content": "text" * 1_000_000}])) == 4_000_008


def test_limits_can_be_set() -> None:
    """max_output, max_steps and max_seconds are what the errors say."""
    with pytest.raises(ChatTemplateError, match="more than 10 characters"):
        ChatTemplate("{{ 'a' * 6 }}{{ 'a' * 6 }}", max_output=10).render([])
    with pytest.raises(ChatTemplateError, match="more than 100 steps"):
        ChatTemplate("{% for i in range(101) %}{% endfor %}", max_steps=100).render([])
    with pytest.raises(ChatTemplateError, match="longer than 0 s"):
        ChatTemplate("{{ 1 }}", max_seconds=0).render([])


def test_errors_name_the_line() -> None:
    """Errors of compiling and of rendering have the template's name and the line."""
    with pytest.raises(ChatTemplateError, match=r"chat template 'x': line 2: .*'endif'"):
        ChatTemplate("a\n{% endif %}", name="x")
    with pytest.raises(ChatTemplateError, match="chat template 'x': line 3: only users"):
        ChatTemplate("a\n\n{{ raise_exception('only users') }}", name="x").render([])
    with pytest.raises(ChatTemplateError, match="chat template: line 2: 'nothing' is undefined"):
        ChatTemplate("\n{{ nothing.at.all }}").render([])


def test_missing_values_are_lenient() -> None:
    """An undefined value prints as nothing and can be asked for; tools and documents are None unless passed."""
    source = "{{ nothing }}{{ messages[0].tool_calls is defined }} {{ tools is none }} {{ documents is none }}"
    assert ChatTemplate(source).render([{"role": "user"}]) == "False True True"


@pytest.mark.parametrize(
    ("messages", "variables", "error", "words"),
    [
        ("text", {}, TypeError, "messages: .*str"),
        ([1], {}, TypeError, r"messages\[0\]: .*int"),
        ([{"content": b"x"}], {}, TypeError, r"messages\[0\]\['content'\]: .*bytes"),
        ([{1: "x"}], {}, TypeError, r"messages\[0\]: keys .*int"),
        ([], {"tools": [print]}, TypeError, r"tools\[0\]: .*builtin"),
        ([], {"now": NOW}, TypeError, "now: .*datetime"),
        ([], {"range": 1}, TypeError, "variables: range "),
        ([], {"bos_token": "x"}, TypeError, "variables: bos_token "),
        ([], {"deep": nested(80)}, ValueError, "deep: .*72"),
    ],
)
def test_only_plain_values_come_in(messages: Any, variables: Any, error: type[Exception], words: str) -> None:
    """A value that is not like JSON is refused with the argument's name, and no variable replaces what templates rely on."""
    with pytest.raises(error, match=words):
        ChatTemplate("").render(messages, **variables)


def test_data_cannot_be_changed() -> None:
    """A template changes neither the caller's messages nor its own copy of them."""
    messages = [{"role": "user", "content": "Hello"}]
    for change in ("messages.append(1)", "messages[0].update(role='x')", "messages[0].pop('role')", "messages.sort()"):
        with pytest.raises(ChatTemplateError, match="unsafe"):
            ChatTemplate("{{ " + change + " }}").render(messages)
    assert messages == [{"role": "user", "content": "Hello"}]


def test_generation_is_a_scope_without_effect() -> None:
    """{% generation %} prints its body; what is set in it is not seen behind it."""
    assert ChatTemplate("{% set x = 1 %}{% generation %}{% set x = 2 %}a{% endgeneration %}{{ x }}").render([]) == "a1"


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """jinja2 is needed by templates only; where it is missing the error has the command."""
    for name in ("sandbox", "filters", "formatting", "text_methods", "origin"):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ChatTemplateError, match=r"pip install 'offgrid-llama\[chat\]'"):
        ChatTemplate("")


def test_the_error_holds_no_values() -> None:
    """An error that is kept does not keep what the template made."""
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError) as caught:
            ChatTemplate("{% set x = 'a' * 8000000 %}{% set y = x ~ 'b' %}{{ 1 / 0 }}").render([])
        assert caught.value.__context__ is None
        assert tracemalloc.get_traced_memory()[0] < 4e6
    finally:
        tracemalloc.stop()

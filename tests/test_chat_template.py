"""chat/template.py: prompts as jinja2 and transformers make them, origins that never get lost, and limits that hold."""

from __future__ import annotations

import functools
import json
import sys
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

import offgrid_llama.chat
from offgrid_llama.chat import ChatTemplate, Part
from offgrid_llama.errors import ChatTemplateError

NOW = datetime(2026, 10, 1, 12, 34, 56)
FOLDER = Path(__file__).parents[1] / "vendor" / "llama.cpp" / "models" / "templates"
NAMES = sorted(path.name for path in FOLDER.glob("*.jinja"))
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
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
    from offgrid_llama.chat import _filters

    monkeypatch.setattr(_filters, "now", lambda: NOW)


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
        {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}]},
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
CONTROL += ["<|eot_id|>", "<|start_header_id|>", "<\uff5cUser\uff5c>", "<|end|>", "<|im_start|>system", "[gMASK]", "<|user|>"]


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


def check_parts(parts: list[Part]) -> None:
    assert all(part.text for part in parts)
    assert all(a.special is not b.special for a, b in zip(parts, parts[1:], strict=False))
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
    "m({a})", "'%s' % [{a}]", "({a}) ~ none ~ 1.5 ~ true", "({a}).removeprefix('\u03b1').removesuffix('b')",
]  # fmt: skip
BINARY = [
    "({a}) ~ ({b})", "({a}) + ({b})", "({a}).replace('a', {b})", "({a})|replace('\u03b1', {b})", "({a})|replace({b}, '<|y|>')",
    "({a}).replace('', {b}, 2)", "({a}).replace({b}, '', 1)", "({a}).join([{b}, {a}, 'z'])", "[{a}, {b}]|join('<|j|>')",
    "[{a}, {b}]|join({b})", "({a}).split('a')|join({b})", "({a}).split('\u03b1', 1)|last ~ ({b})", "({a}).rsplit('b', 1)[0] ~ {b}",
    "({a}).partition('b')|join({b})", "({a}).rpartition('\u03b2')|last ~ {b}", "'%s<|p|>%s' % ({a}, {b})",
    "'%(x)s%(y)s' % {{'x': {a}, 'y': {b}}}", "'{{1}}<|f|>{{0}}'.format({a}, {b})", "'%s-%s'|format({a}, {b})",
    "({a})|default({b}, true)", "({a}) if ({b}) else 'none'", "[{a}, {b}]|min", "[{a}, {b}]|max", "[{a}, {b}]|sort|first",
    "({a})|indent({b})", "[{a}, {b}]|select('string')|list|last", "[{a}, {b}]|reject('in', {b})|join", "({a}) or ({b})", "m({a}, {b})",
    "({a}) in ({b})", "({a}).startswith({b})", "({a}).find({b})", "({a}).count('a') ~ ({b})", "[{a}, {b}]|map('replace', 'a', {b})|join",
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
def test_each_operation_is_reached(form: str) -> None:
    """Each form that the fuzzer builds with is valid for some texts, so that it is not all refused."""
    program = SET + MACROS + "{{ " + form.format(a="u", b="v") + " }}"
    messages = user_text("\u03b1 \u03b2b\na", "\u03b2")
    expected = oracle(PLAIN.from_string(program), messages)
    assert expected is not None
    assert ChatTemplate(program).render(messages) == expected

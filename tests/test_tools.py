"""Tools: what is found out about a template's calls, what is read, what is allowed, and what a model then calls."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from golden_chats import CASES, NOT_AS_EXPECTED, TEMPLATES, known, read, same
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.literal import read_literal
from offgrid_llama.chat.reasoning import find_reasoning
from offgrid_llama.chat.tool import Tool, ToolCall, choose_tools, read_tools
from offgrid_llama.chat.tool_format import JSON_IN_TAGS, Slot, ToolFormat
from offgrid_llama.chat.tool_grammar import tool_grammar
from offgrid_llama.chat.tool_messages import tool_messages
from offgrid_llama.chat.tool_probe import MOST_SECONDS, find_tool_format
from offgrid_llama.chat.tool_reader import ToolReader, gathered
from offgrid_llama.engine import Chat, FinishReason

WRITTEN = sorted(path.name for path in TEMPLATES.glob("*.jinja") if known(path.name)[1].written)


def object_of(required: list[str], **types: object) -> dict[str, Any]:
    """Return the schema of an object, whose properties have a type, or one of some values."""
    properties = {
        name: {"description": f"The {name}.", **({"type": kind} if isinstance(kind, str) else {"enum": kind})}
        for name, kind in types.items()
    }
    return {"type": "object", "properties": properties, "required": required}


WEATHER = Tool("get_weather", "The weather of a city.", object_of(["city"], city="string", days="integer"))
CLOCK = Tool("clock", "The time.", object_of([], utc="boolean"))
UNIT = Tool("unit", "Choose.", object_of(["unit", "scale"], unit=["celsius", "kelvin"], scale="number"))
TOOLS = [WEATHER, CLOCK, UNIT]


# What llama.cpp expects ---------------------------------------------------------------------------------------------------


def test_cases_of_llama_cpp() -> None:
    """All but those listed are read as expected, at once and character by character; none of those listed is by now."""
    others = {number for numbers in NOT_AS_EXPECTED.values() for number in numbers}
    wrong = set()
    for number, case in enumerate(CASES):
        try:
            whole, pieces = read(case, len(case["input"]) or 1), read(case, 1)
        except og.ChatTemplateError:
            wrong.add(number)
            continue
        assert whole == pieces, case["input"]
        if not same(case, whole):
            wrong.add(number)
    assert wrong == others
    assert len(CASES) - len(wrong) == 407


def test_formats_are_found() -> None:
    """59 of llama.cpp's templates write calls that can be understood; the others do not, or jinja2 refuses them."""
    assert len(WRITTEN) == 59
    assert known("Qwen-Qwen3-0.6B.jinja")[1] == dataclasses.replace(JSON_IN_TAGS, told=True, written=True)
    coder = known("Qwen3-Coder.jinja")[1]
    assert (coder.trigger, coder.shorter) == ("<tool_call>", "<function=")
    assert coder.tags is not None
    assert coder.tags.begin == "<parameter="
    cohere = known("CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja")[1]
    assert (cohere.begin, cohere.end) == ("<|START_ACTION|>[\n    ", "\n]<|END_ACTION|>")
    assert Slot.INDEX in cohere.call
    assert known("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja")[1].as_text
    assert not known("google-gemma-2-2b-it.jinja")[1].told


# What templates write is read back ----------------------------------------------------------------------------------------

texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x3FF, exclude_characters="<>[]{}|'\"`\\\x7f"), max_size=30
)
words = texts.map(lambda text: f"a{text.strip()}z")
arguments_of = {
    "get_weather": st.fixed_dictionaries({"city": words}, optional={"days": st.integers(-1000, 1000)}),
    "clock": st.fixed_dictionaries({}, optional={"utc": st.booleans()}),
    "unit": st.fixed_dictionaries(
        {"unit": st.sampled_from(["celsius", "kelvin"]), "scale": st.sampled_from([0.5, -1.25, 1000.0])}
    ),
}
calls = st.lists(
    st.sampled_from(sorted(arguments_of)).flatmap(lambda name: st.tuples(st.just(name), arguments_of[name])),
    min_size=1, max_size=3,
)  # fmt: skip


def read_calls(form: ToolFormat, text: str, step: int) -> tuple[str, list[tuple[str, Any]]]:
    """Return content and calls of a text."""
    reader = ToolReader(form, TOOLS, lambda index: f"id{index}")
    told = [reader.push(text[at : at + step]) for at in range(0, len(text), step)]
    told.append(reader.finish())
    found = gathered(delta for each in told for delta in each.calls)
    return "".join(each.content for each in told), [(call.name, call.parsed) for call in found]


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=15)
@given(calls=calls, step=st.integers(1, 40))
def test_what_templates_write(name: str, calls: list[tuple[str, dict[str, Any]]], step: int) -> None:
    """Calls that a template writes of a conversation, and those that we write for it, are read as what they were."""
    template, form, _ = known(name)
    calls = calls if form.separator is not None else calls[:1]
    described = [(call, arguments, f"call{i}abcd") for i, (call, arguments) in enumerate(calls)]
    asked = {"role": "user", "content": "Do it."}
    tool_calls = [
        {"type": "function", "id": id_, "function": {"name": call, "arguments": json.dumps(arguments)}}
        for call, arguments, id_ in described
    ]
    messages = tool_messages([asked, {"role": "assistant", "content": None, "tool_calls": tool_calls}], form)
    rendered = template.render(messages, add_generation_prompt=False, tools=[tool.as_dict() for tool in TOOLS])
    mark = form.write(described)
    answer = rendered[rendered.rfind("Do it.") :]
    for text in (answer[answer.find(form.trigger or calls[0][0]) :], mark):
        found = read_calls(form, text, step)[1]
        assert found == calls, text


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_texts_that_are_fenced(step: int) -> None:
    """A template that writes texts with signs of markup as CDATA is found out about, and what it writes is read."""
    template, form, _ = known("openbmb-MiniCPM5-1B.jinja")
    assert form.tags is not None
    assert form.tags.fence == ("<![CDATA[", "]]>")
    for city in ("a & b", "<b>\n</param></function> [[", "plain", "<![CDATA", ""):
        arguments = {"city": city, "days": 3}
        described = [("get_weather", arguments, "call1abcd")]
        call = {"type": "function", "function": {"name": "get_weather", "arguments": json.dumps(arguments)}}
        asked: list[dict[str, Any]] = [{"role": "user", "content": "Do it."}]
        asked.append({"role": "assistant", "content": None, "tool_calls": [call]})
        rendered = template.render(tool_messages(asked, form), tools=[tool.as_dict() for tool in TOOLS])
        written = form.write(described)
        assert written in rendered
        assert read_calls(form, written, step)[1] == [("get_weather", arguments)]


@pytest.mark.parametrize("name", [name for name in WRITTEN if known(name)[1].anywhere])
def test_text_before_and_after(name: str) -> None:
    """What a model says besides its calls is content; what only looks like a call is, too."""
    form = known(name)[1]
    text = form.write([("clock", {"utc": True}, "call0abcd")])
    if form.heads is not None:
        return
    assert read_calls(form, f"I look.{text}", 3) == ("I look.", [("clock", {"utc": True})])
    assert read_calls(form, f"Say {form.trigger} of it.", 2)[0].replace(" ", "") == f"Say{form.trigger}ofit.".replace(
        " ", ""
    )
    assert read_calls(form, "Nothing.\n", 4) == ("Nothing.\n", [])


def test_literals() -> None:
    """Values are read as JSON, as Python, with quotes of their own, and as texts where they are none of these."""
    for text, value in (
        ("1", 1), ("-1.5e3", -1500.0), ("true", True), ("True", True), ("None", None), ("'it\\'s'", "it's"),
        ("[1, 'a', None]", [1, "a", None]), ("{'a': {'b': (1, 2)}}", {"a": {"b": [1, 2]}}), ("[1,", "[1,"),
        ("{a:<|x|>b c<|x|>,d:[]}", {"a": "b c", "d": []}), ("007", "007"), ("12 Main St", "12 Main St"), ("", ""),
        ('"\\u00e9"', "é"), ("'\\x41\\n'", "A\n"), ("[" * 5000, "[" * 5000), ("{1}", "{1}"),
    ):  # fmt: skip
        assert read_literal(text, "<|x|>") == value, text


# What is allowed ----------------------------------------------------------------------------------------------------------


def accepts(grammar: og.Grammar, vocab: og.Vocab, text: str) -> bool:
    """Return whether a text, in the longest tokens that are allowed, is a whole one of a grammar."""
    guide = grammar.guide(vocab)
    controls = vocab.control_tokens()
    ids = np.arange(vocab.n_tokens)

    def allowed() -> Any:
        guide.fill()
        return np.frombuffer(guide.words(), np.uint32)[ids >> 5] >> (ids & 31).astype(np.uint32) & 1 == 1

    rest = text.encode()
    while rest:
        mask = allowed()
        control = next((id_ for mark, id_ in controls.items() if rest.startswith(mark.encode())), None)
        ways = [control] if control is not None and mask[control] else _beginnings(vocab, rest)
        token = next((id_ for id_ in ways if mask[id_]), None)
        if token is None:
            return False
        guide.accept(token)
        rest = rest[len(vocab.text(token).encode() if token == control else vocab.piece(token)) :]
    return bool(allowed()[vocab.eos])


def _beginnings(vocab: og.Vocab, text: bytes) -> list[int]:
    """Return the tokens that a text begins with, the longest first."""
    if not PIECES:
        PIECES.update({piece: token for token, piece in enumerate(vocab.pieces())})
    found = (PIECES.get(text[:n]) for n in range(min(len(text), 40), 0, -1))
    return [id_ for id_ in found if id_ is not None]


PIECES: dict[bytes, int] = {}


@pytest.mark.parametrize("name", WRITTEN)
def test_grammar(name: str, smollm2: og.Model) -> None:
    """A call of each tool is allowed, with text before it if none is required; one of another tool or shape is not."""
    form, vocab = known(name)[1], smollm2.vocab
    whole: list[list[tuple[str, dict[str, Any]]]] = [
        [("get_weather", {"city": "São Paulo"})], [("get_weather", {"city": "Bern", "days": -3})], [("clock", {})],
        [("clock", {"utc": True})], [("unit", {"unit": "kelvin", "scale": 1.5})],
    ]  # fmt: skip
    both: list[tuple[str, dict[str, Any]]] = [("clock", {}), ("get_weather", {"city": "Bern"})]
    none: list[list[tuple[str, dict[str, Any]]]] = [
        [("get_time", {"city": "Bern"})], [("get_weather", {"days": 3})], [("unit", {"unit": "rankine", "scale": 1.5})],
        [("clock", {"utc": "maybe"})], [("get_weather", {"city": "Bern", "where": "Switzerland"})],
    ]  # fmt: skip

    def written(calls: list[tuple[str, dict[str, Any]]], before: str = "") -> str:
        text = form.write([(call, arguments, "abcdefghi") for call, arguments in calls])
        return before + (text if before else text.lstrip())

    for required in (True, False):
        for parallel in (True, False):
            grammar = tool_grammar(form, TOOLS, vocab, required=required, parallel=parallel)
            assert [each for each in whole if not accepts(grammar, vocab, written(each))] == []
            assert [each for each in none if accepts(grammar, vocab, written(each))] == []
            assert accepts(grammar, vocab, written(both)) is (parallel and form.separator is not None)
            assert accepts(grammar, vocab, f"{form.heads.content if form.heads else ''}It is late.") is not required
            if form.anywhere and form.heads is None:
                assert accepts(grammar, vocab, written(whole[0], "I look. ")) is not required
                assert not accepts(grammar, vocab, written(none[0], "I look. "))


# What is a tool -----------------------------------------------------------------------------------------------------------


def look_up(city: str, unit: Literal["celsius", "kelvin"] = "celsius", days: list[int] | None = None) -> str:
    """Return the weather of a city.

    More of this is not for the model.
    """
    return f"{city} {unit} {days}"


def test_functions_are_tools() -> None:
    """A typed function has a name, a description and a schema, and is called with the types it asks for."""
    (tool,) = read_tools([look_up])
    assert (tool.name, tool.description) == ("look_up", "Return the weather of a city.")
    assert tool.parameters["required"] == ["city"]
    assert tool.parameters["properties"]["unit"]["enum"] == ["celsius", "kelvin"]
    call = ToolCall("a", "look_up", '{"city": "Bern", "days": [1, 2]}')
    assert call.run([tool]) == "Bern celsius [1, 2]"
    with pytest.raises(ValueError, match="no parameter where"):
        ToolCall("a", "look_up", '{"city": "Bern", "where": 1}').run([tool])
    with pytest.raises(ValueError, match="days"):
        ToolCall("a", "look_up", '{"city": "Bern", "days": "some"}').run([tool])
    with pytest.raises(og.ToolError, match="no function other"):
        ToolCall("a", "other", "{}").run([tool])
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        ToolCall("a", "look_up", '{"city').run([tool])


def _no_type(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Say nothing."""


def _many(*cities: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    ("tools", "error", "told"),
    [
        ("look_up", TypeError, "must be a list"),
        ([1], TypeError, r"tools\[0\] must be"),
        ([{"type": "function"}], ValueError, r"tools\[0\] must be"),
        ([{"type": "function", "function": {"name": "a b"}}], ValueError, "1 to 64 letters"),
        ([{"type": "function", "function": {"name": "a", "parameters": 1}}], TypeError, "JSON Schema"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}], ValueError, "object"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"contains": 1}}}}}],
            og.GrammarError, "parameters of a.*contains",
        ),
        ([look_up, look_up], ValueError, "more than once"),
        ([_no_type], TypeError, "no type"),
        ([_many], TypeError, "cannot be a parameter"),
        ([look_up] * 200, ValueError, "the limit is 128"),
    ],
)  # fmt: skip
def test_tools_that_are_none(tools: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        read_tools(tools)


def test_choices() -> None:
    """Which tools may be called, and whether one must be."""
    assert choose_tools(TOOLS, None) == (TOOLS, False)
    assert choose_tools(TOOLS, "none") == ([], False)
    assert choose_tools(TOOLS, "required") == (TOOLS, True)
    assert choose_tools(TOOLS, "clock") == ([CLOCK], True)
    assert choose_tools(TOOLS, {"type": "function", "function": {"name": "clock"}}) == ([CLOCK], True)
    for choice in ("never", 3, {"type": "function"}):
        with pytest.raises(ValueError, match="tool_choice must be"):
            choose_tools(TOOLS, choice)
    with pytest.raises(ValueError, match="there is none"):
        choose_tools([], "required")


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        ({"role": "assistant", "tool_calls": 3}, TypeError, r"messages\[0\]\['tool_calls'\] must be a list"),
        ({"role": "assistant", "tool_calls": [{}]}, ValueError, r"\['tool_calls'\]\[0\] must be"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}, ValueError, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}, TypeError, "an object"),
        ({"role": "tool", "tool_call_id": "x", "content": "1"}, ValueError, "no call before"),
    ],
)
def test_messages_that_are_none(message: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        tool_messages([message], JSON_IN_TAGS)


# What a model calls -------------------------------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "What is the weather in Bern?"}]
SHORT: dict[str, Any] = {"max_tokens": 100, "temperature": 0}


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=8192) as engine:
        yield engine


@pytest.fixture(params=["its own template", "one that writes calls", "one with tags"])
def template(request: pytest.FixtureRequest) -> ChatTemplate | None:
    """Return a template that knows no tools, and ones that do."""
    names = {"one that writes calls": "Qwen-Qwen2.5-7B-Instruct.jinja", "one with tags": "Qwen3-Coder.jinja"}
    if request.param not in names:
        return None
    return ChatTemplate((TEMPLATES / names[request.param]).read_text(encoding="utf-8"), name=request.param)


def test_a_call(engine: og.Engine, template: ChatTemplate | None) -> None:
    """A required call is whole, streams as what it is, and its result can be told."""
    options = {**SHORT, "tools": [WEATHER, CLOCK], "tool_choice": "required", "template": template}
    reply = engine.chat(ASKED, parallel_tool_calls=False, **options).result()
    (call,) = reply.tool_calls
    assert call.name in ("get_weather", "clock")
    assert set(call.parsed) <= set({"get_weather": WEATHER, "clock": CLOCK}[call.name].parameters["properties"])
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    message = reply.message()
    assert (message["content"], message["tool_calls"]) == ("", [call.as_dict()])
    assert len(call.id) == 9
    deltas = list(reply)
    assert "".join(piece.arguments for delta in deltas for piece in delta.tool_calls) == call.arguments
    assert [piece.name for delta in deltas for piece in delta.tool_calls if piece.name] == [call.name]
    assert [delta.finish_reason for delta in deltas][-1] is FinishReason.TOOL_CALLS
    assert sum(bool(piece.arguments) for delta in deltas for piece in delta.tool_calls) > 1 or len(call.arguments) < 12
    told = [*ASKED, message, {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
    assert engine.chat(told, **{**options, "tool_choice": "auto"}).result().usage.prompt_tokens > 0


def test_which_call(engine: og.Engine, template: ChatTemplate | None) -> None:
    """The tool that is named is called, none with "none", and what the model likes with "auto"."""
    options = {**SHORT, "tools": [WEATHER, CLOCK], "template": template}
    (call,) = engine.chat(ASKED, tool_choice="clock", parallel_tool_calls=False, **options).result().tool_calls
    assert call.name == "clock"
    silent = engine.chat(ASKED, tool_choice="none", **options).result()
    assert silent.tool_calls == []
    plain = engine.chat(ASKED, template=template, **SHORT).result()
    assert silent.content == plain.content
    free = engine.chat(ASKED, **options).result()
    assert all(call.name in ("get_weather", "clock") and call.parsed is not None for call in free.tool_calls)


def test_a_call_or_a_shape(engine: og.Engine) -> None:
    """With a response format the answer is of it, or a call."""
    shape = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    described = {"type": "json_schema", "json_schema": {"schema": shape}}
    reply = engine.chat(ASKED, tools=[WEATHER], response_format=described, **SHORT).result()
    if reply.tool_calls:
        assert reply.tool_calls[0].parsed["city"]
    else:
        assert set(reply.parsed()) == {"rain"}
    with pytest.raises(ValueError, match="tools and grammar"):
        engine.chat(ASKED, tools=[WEATHER], grammar=og.Grammar.regex("a+"))


def test_results_are_fed_back(engine: og.Engine) -> None:
    """`Chat.run` calls functions, tells the model their results, or what they failed with, and ends with an answer."""
    seen: list[tuple[str, ...]] = []

    def weather(city: Literal["Bern", "Rome"]) -> str:
        """Return the weather."""
        seen.append((city,))
        if len(seen) > 1:
            raise RuntimeError("no satellite")
        return "sun"

    chat = Chat(engine, tools=[weather], **SHORT)
    reply = chat.run("What is the weather in Bern?", tool_choice="required", parallel_tool_calls=False, max_turns=2)
    assert len(seen) == 1
    assert reply.tool_calls == []
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["content"] == "sun"
    chat.run("And in Rome?", tool_choice="required", parallel_tool_calls=False, max_turns=2)
    assert chat.messages[-2]["content"] == "RuntimeError: no satellite"
    chat.undo()
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_call_that_is_cut_off(engine: og.Engine) -> None:
    """It is as far as it has come, and no part of the conversation that goes on."""
    chat = Chat(engine, tools=[WEATHER], temperature=0)
    reply = chat.say("What is the weather in Bern?", tool_choice="required", max_tokens=18).result()
    assert reply.finish_reason is FinishReason.LENGTH
    (call,) = reply.tool_calls
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        assert call.parsed
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    assert chat.say("Well?", tool_choice="none", max_tokens=4).result().finish_reason is FinishReason.LENGTH


def test_many_at_once(engine: og.Engine) -> None:
    """Each of several answers has its own calls, with ids of their own."""
    replies = engine.chat(
        ASKED, tools=[WEATHER, CLOCK], tool_choice="required", n=3, max_tokens=100, temperature=1.0, seed=4
    ).result()
    found = [replies.message(index).get("tool_calls", []) for index in range(3)]
    ids = [call["id"] for calls in found for call in calls]
    assert len(set(ids)) == len(ids) >= 3


def test_hostile_templates() -> None:
    """What takes too long to be found out is not."""
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    begin = time.perf_counter()
    for source in (endless, "{% if tools %}" + endless + "{% endif %}x", "{{ raise_exception('no') }}"):
        template = ChatTemplate(source, max_seconds=0.05)
        assert not find_tool_format(template, find_reasoning(template)).written
    assert time.perf_counter() - begin < 2 * MOST_SECONDS  # and not the time of 50 renderings


def test_templates_of_no_tools() -> None:
    """A template that knows no tools tells of none, and what is written instead is the usual format."""
    form = find_tool_format(ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}"), None)
    assert (form.told, form.written) == (False, False)
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": '{"utc": true}'}}
    made = tool_messages(
        [
            {"role": "user", "content": "Late?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "10"},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "11"},
        ],
        form,
    )
    assert [message["role"] for message in made] == ["user", "assistant", "user"]
    assert made[1]["content"] == 'I look.\n<tool_call>\n{"name": "clock", "arguments": {"utc": true}}\n</tool_call>'
    assert made[2]["content"].count("<tool_response>") == 2

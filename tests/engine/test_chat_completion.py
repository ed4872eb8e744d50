"""engine.chat: answers to messages, as their users see them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field

import offgrid_llama as og
from helpers.chats import ASKED, GREEDY, THINKING, said
from helpers.tools import CLOCK
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.chat_format import ToolUse
from offgrid_llama.chat.messages import plain_messages
from offgrid_llama.chat.prompt import prompt_tokens


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=4096) as engine:
        yield engine


def test_an_answer(engine: og.Engine, smollm2: og.Model) -> None:
    """It is what the rendered prompt is completed to; deltas, the awaited whole and the message have the same text."""
    reply = engine.chat(ASKED, **GREEDY).result()
    prompt = prompt_tokens(smollm2.vocab, ChatTemplate.of(smollm2).parts(ASKED))
    assert engine.generate(prompt, **GREEDY).text == reply.content
    assert reply.message() == {"role": "assistant", "content": reply.content}
    assert reply.usage.prompt_tokens == len(prompt)
    deltas = list(engine.chat(ASKED, **GREEDY))
    assert "".join(delta.content for delta in deltas) == reply.content
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [reply.finish_reason]

    async def both() -> tuple[str, str]:
        whole = await engine.chat(ASKED, **GREEDY)
        return whole.content, "".join([delta.content async for delta in engine.chat(ASKED, **GREEDY)])

    assert asyncio.run(both()) == (reply.content, reply.content)


def test_several_answers(engine: og.Engine) -> None:
    """Each has its own message, and its deltas its index."""
    reply = engine.chat(ASKED, n=3, seed=1, max_tokens=12)
    texts = [""] * 3
    for delta in reply:
        texts[delta.index] += delta.content
    assert texts == [reply.message(index)["content"] for index in range(3)]
    assert len(set(texts)) > 1


def test_what_was_thought(engine: og.Engine, smollm2: og.Model) -> None:
    """Reasoning comes apart from the answer, streamed too, and goes back into the next prompt as such."""
    template = ChatTemplate.of(smollm2, THINKING)
    grammar = said("<think>\nSo it is.\n</think>\n\nYes.")
    options: dict[str, Any] = {"template": template, "grammar": grammar, "max_tokens": 40}
    reply = engine.chat(ASKED, **options).result()
    assert (reply.reasoning, reply.content) == ("So it is.", "Yes.")
    assert reply.message() == {"role": "assistant", "content": "Yes.", "reasoning_content": "So it is."}
    n_tokens = [len(smollm2.vocab.tokenize(text, add_special=False)) for text in ("<think>\nSo it is.", "So.")]
    assert reply.reasoning_tokens() == n_tokens[0]
    deltas = list(engine.chat(ASKED, **options))
    assert "".join(delta.reasoning for delta in deltas) == "So it is."
    assert "".join(delta.content for delta in deltas) == "Yes."
    assert "<think>\nSo it is." in template.render([*ASKED, reply.message()])
    opened = engine.chat(
        ASKED, template=template, variables={"open_thought": True}, grammar=said("So.</think>Yes."), max_tokens=40
    ).result()
    assert (opened.reasoning, opened.content, opened.reasoning_tokens()) == ("So.", "Yes.", n_tokens[1])
    whole = engine.chat(ASKED, split_reasoning=False, **options).result()
    assert (whole.content, whole.reasoning_tokens()) == ("<think>\nSo it is.\n</think>\n\nYes.", 0)


def test_marks_that_are_control_tokens(engine: og.Engine, smollm2: og.Model) -> None:
    """They give no text by themselves, and are found all the same."""
    marked = THINKING.replace("<think>", "<repo_name>").replace("</think>", "<file_sep>")
    template = ChatTemplate.of(smollm2, marked)
    controls = smollm2.vocab.control_tokens()
    planned = [controls["<repo_name>"], *smollm2.vocab.tokenize("So.", add_special=False), controls["<file_sep>"]]
    planned += [*smollm2.vocab.tokenize("Yes.", add_special=False), smollm2.vocab.eos or 0]

    def plan(tokens: Any, logits: Any) -> None:
        logits[:] = float("-inf")
        logits[planned[len(tokens) - n_prompt]] = 0

    n_prompt = len(prompt_tokens(smollm2.vocab, template.parts(ASKED)))
    reply = engine.chat(ASKED, template=template, logits_processors=[plan], max_tokens=20).result()
    assert (reply.reasoning, reply.content) == ("So.", "Yes.")
    assert reply.reasoning_tokens() == planned.index(controls["<file_sep>"])
    assert engine.generate("a", max_tokens=2, temperature=0, unparse_special=True).text


def test_messages_of_every_shape() -> None:
    """Parts of text become text; anything else is refused with its place."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "user", "content": parts, "name": "x"}]) == [
        {"role": "user", "content": "ab", "name": "x"}
    ]
    assert plain_messages([{"role": "assistant", "tool_calls": []}])[0]["content"] is None
    for refused in ({"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}):
        assert plain_messages([{"role": "assistant", **refused}])[0]["content"] == "No."
    bad: list[tuple[Any, type[Exception], str]] = [
        ("hello", TypeError, "messages must be a list"),
        ([], ValueError, "empty"),
        (["hello"], TypeError, r"messages\[0\]"),
        ([{"content": "a"}], ValueError, r"messages\[0\] must have a 'role'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}, "text": "a"}]}], ValueError, "image_url"),
        ([{"role": "user", "content": 3}], TypeError, r"messages\[0\]\['content'\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ValueError, r"\['content'\]\[0\].*image_url"),
    ]
    for messages, kind, words in bad:
        with pytest.raises(kind, match=words):
            plain_messages(messages)


def test_templates_that_are_not_there(engine: og.Engine) -> None:
    """A name that the model has not is told; so is a template that refuses."""
    with pytest.raises(og.ChatTemplateError, match="'tool_use'"):
        engine.chat(ASKED, template="tool_use")
    with pytest.raises(og.ChatTemplateError, match="not today"):
        engine.chat(ASKED, template=ChatTemplate("{{ raise_exception('not today') }}"))
    with pytest.raises(og.ContextLengthError):
        engine.chat([{"role": "user", "content": "a " * 5000}])


# Answers of a shape ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class City:
    """The shape of an answer that is soon whole, whatever the model says: a text or a number may go on to ``max_tokens``."""

    name: Literal["Paris", "Rome"]
    inhabitants: Annotated[int, Field(ge=0, le=10_000_000)]


def test_response_formats(engine: og.Engine) -> None:
    """A type, OpenAI's dicts and a Grammar: the answer is of that shape, and parsed() makes it so."""
    hot: dict[str, Any] = {"temperature": 1.5, "seed": 4, "max_tokens": 200}
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    city = engine.chat(ASKED, response_format=City, **hot)
    described = engine.chat(
        ASKED, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, **hot
    )
    chosen = engine.chat(ASKED, response_format=og.Grammar.choices(["Paris", "Rome"]), **hot)
    free = engine.chat(ASKED, response_format={"type": "text"}, **GREEDY)
    assert isinstance(city.parsed(), City)
    assert described.parsed() in ({"a": "x"}, {"a": "y"})
    assert chosen.parsed() in ("Paris", "Rome")
    assert free.result().content == engine.chat(ASKED, **GREEDY).result().content
    cut = engine.chat(ASKED, response_format={"type": "json_object"}, temperature=0, max_tokens=1)
    with pytest.raises(ValueError, match="is not whole: it has ended as length"):
        cut.parsed()


@pytest.mark.parametrize(
    ("response_format", "error", "told"),
    [
        ({"type": "xml"}, ValueError, "must be 'text', 'json_object', 'json_schema' or 'structural_tag', not 'xml'"),
        ({"type": "json_schema"}, ValueError, "must be a dict with a 'schema'"),
        ({"type": "json_schema", "json_schema": {"schema": {"not": {"const": 1}}}}, og.GrammarError, "at /not: 'not' is"),
        (og.Model, og.GrammarError, "has no JSON Schema"),
    ],
    ids=["type", "no schema", "keyword", "class"],
)  # fmt: skip
def test_response_formats_that_are_none(
    engine: og.Engine, response_format: Any, error: type[Exception], told: str
) -> None:
    """They are refused by name before anything is computed."""
    with pytest.raises(error, match=told):
        engine.chat(ASKED, response_format=response_format)


def test_a_response_format_and_a_grammar(engine: og.Engine) -> None:
    """Only one of the two can be meant, whichever argument has the grammar; the same holds for tools."""
    grammar = og.Grammar.choices(["a"])
    for given in ({"grammar": grammar}, {"sampling": og.SamplingParams(grammar=grammar)}):
        options: Any = given
        with pytest.raises(ValueError, match="response_format and grammar both constrain"):
            engine.chat(ASKED, response_format=City, **options)
        with pytest.raises(ValueError, match="tools and grammar both constrain"):
            engine.chat(ASKED, tools=[CLOCK], **options)


def saying(vocab: og.Vocab, text: str) -> Callable[..., None]:
    """Return a logits processor that makes the model write a text."""
    tokens = [*vocab.tokenize(text, add_special=False), vocab.eos]

    def process(ids: Sequence[int], logits: Any) -> None:
        begun = next(n for n in range(len(tokens), -1, -1) if list(ids[len(ids) - n :]) == tokens[:n])
        logits[:] = -np.inf
        logits[tokens[begun]] = 0

    return process


def test_a_call_without_marks(engine: og.Engine, smollm2: og.Model) -> None:
    """A call that a model writes as its whole answer, without the marks of its format, is a call, unless that is off."""
    text = '```json\n{"name": "clock", "arguments": {"utc": true}}\n```'
    options: Any = {"tools": [CLOCK], "logits_processors": [saying(smollm2.vocab, text)], "max_tokens": 60}
    reply = engine.chat(ASKED, **options).result()
    assert ([call.parsed for call in reply.tool_calls], reply.content) == ([{"utc": True}], "")
    assert reply.finish_reason is og.FinishReason.TOOL_CALLS
    deltas = list(engine.chat(ASKED, **options))
    assert "".join(delta.content for delta in deltas) == ""
    assert [call.name for delta in deltas for call in delta.tool_calls] == ["clock"]
    assert engine.chat(ASKED, bare_calls=False, **options).result().content == text
    assert engine.chat(ASKED, **{**options, "tools": None}).result().content == text


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_a_call_that_is_cut(engine: og.Engine, max_tokens: int) -> None:
    """An answer that is cut within a call has none of its marks as content, streamed or not."""
    options: Any = {"tools": [CLOCK], "tool_choice": "required", "max_tokens": max_tokens, "temperature": 0}
    reply = engine.chat(ASKED, **options).result()
    assert reply.finish_reason is og.FinishReason.LENGTH
    assert reply.content == ""
    assert "".join(delta.content for delta in engine.chat(ASKED, **options)) == ""


@pytest.mark.parametrize("opened", [False, True], ids=["opened by the model", "opened by the prompt"])
def test_a_shape_after_the_reasoning(engine: og.Engine, smollm2: og.Model, opened: bool) -> None:
    """The reasoning is free, and the answer behind it has its shape."""
    template = ChatTemplate(THINKING)
    options: dict[str, Any] = {"template": template, "variables": {"open_thought": opened}}
    reply = engine.chat(
        ASKED, response_format=City, reasoning_budget=12, temperature=0, max_tokens=200, **options
    ).result()
    if opened:
        assert reply.reasoning
    assert isinstance(reply.parsed(), City)
    chat_format = engine.chat_format(template)
    prompt = chat_format.prompt(ASKED, False, options["variables"])
    grammar = chat_format.grammar(og.Grammar.choices(["yes"]), prompt, ToolUse())
    assert grammar is not None
    guide = grammar.guide(smollm2.vocab)
    thought = "Hm, <think or not?\n</think>\n\nyes"
    for token in smollm2.vocab.tokenize(thought if opened else f"<think>\n{thought}", add_special=False):
        guide.accept(token)
    assert guide.error is None
    assert guide.ended


def test_a_reasoning_budget(engine: og.Engine) -> None:
    """The model has to answer after a given number of reasoning tokens; without reasoning nothing changes."""
    template = ChatTemplate(THINKING)
    options: dict[str, Any] = {"template": template, "variables": {"open_thought": True}, "temperature": 0}
    endless = og.SamplingParams(temperature=0, logit_bias=dict.fromkeys(engine.model.vocab.eog_tokens(), float("-inf")))
    free = engine.chat(ASKED, sampling=endless, max_tokens=60, **options).result()
    assert free.content == ""  # it does not know the mark, and goes on
    assert free.reasoning_tokens() == 60
    for n in (0, 1, 10, 30):
        reply = engine.chat(ASKED, sampling=endless, max_tokens=60, reasoning_budget=n, **options).result()
        thought = engine.model.vocab.tokenize(reply.reasoning, add_special=False)
        assert len(thought) <= n + 1
        assert free.reasoning.startswith(reply.reasoning)
        assert reply.content
        assert len(reply.completion.tokens) == 60
    plain = engine.chat(ASKED, reasoning_budget=1, **GREEDY).result()
    assert plain.content == engine.chat(ASKED, **GREEDY).result().content
    with pytest.raises(ValueError, match="reasoning_budget must be 0 or more"):
        engine.chat(ASKED, reasoning_budget=-1)

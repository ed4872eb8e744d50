"""engine.chat and Chat: conversations, as their users see them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.messages import plain_messages
from offgrid_llama.chat.prompt import prompt_tokens
from offgrid_llama.engine import Chat, FinishReason
from offgrid_llama.engine.budget import Budget
from offgrid_llama.engine.chat_format import ToolUse

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
THINKING = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if open_thought %}<think>
{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=4096) as engine:
        yield engine


def said(text: str) -> og.Grammar:
    """Return a grammar that lets the model say this."""
    return og.Grammar.gbnf(f"root ::= {json.dumps(text)}")


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


def test_a_conversation(engine: og.Engine) -> None:
    """Each turn has what was said before, and computes only what is new."""
    chat = Chat(engine, "You are terse.", **GREEDY)
    first = chat.say("My name is Ada. What is the capital of France?")
    second = chat.say("And of Italy?")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[2] == first.message()
    assert chat.messages[4] == second.message()
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    again = engine.chat(chat.messages[:-1], **GREEDY).result()
    assert again.content == second.content
    chat.undo()
    assert len(chat.messages) == 3
    chat.undo()
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "You are terse."}]
    with chat.say("Count to a hundred.", max_tokens=200) as cut:
        next(iter(cut))
    assert chat.messages[-1]["content"] == cut.content
    assert cut.finish_reason is FinishReason.CANCELLED


def test_going_on(engine: og.Engine, smollm2: og.Model) -> None:
    """The last message is continued where it ends, spaces and all."""
    begun = [*ASKED, {"role": "assistant", "content": "The capital of France, as everybody knows, is "}]
    parts = ChatTemplate.of(smollm2).parts_to_continue(begun)
    assert "".join(part.text for part in parts).endswith("assistant\nThe capital of France, as everybody knows, is ")
    reply = engine.chat(begun, continue_final_message=True, **GREEDY).result()
    assert reply.content
    with pytest.raises(ValueError, match="the assistant's"):
        engine.chat(ASKED, continue_final_message=True)
    shouting = ChatTemplate("{{ messages[-1].content | upper | replace('\ue0f0', '') }}")
    with pytest.raises(og.ChatTemplateError, match="continued"):
        engine.chat(begun, template=shouting, continue_final_message=True)


def test_what_was_thought(engine: og.Engine, smollm2: og.Model) -> None:
    """Reasoning comes apart from the answer, streamed too, and goes back into the next prompt as such."""
    template = ChatTemplate.of(smollm2, THINKING)
    grammar = said("<think>\nSo it is.\n</think>\n\nYes.")
    options: dict[str, Any] = {"template": template, "grammar": grammar, "max_tokens": 40}
    reply = engine.chat(ASKED, **options).result()
    assert (reply.reasoning, reply.content) == ("So it is.", "Yes.")
    assert reply.message() == {"role": "assistant", "content": "Yes.", "reasoning_content": "So it is."}
    deltas = list(engine.chat(ASKED, **options))
    assert "".join(delta.reasoning for delta in deltas) == "So it is."
    assert "".join(delta.content for delta in deltas) == "Yes."
    assert "<think>\nSo it is." in template.render([*ASKED, reply.message()])
    opened = engine.chat(
        ASKED, template=template, variables={"open_thought": True}, grammar=said("So.</think>Yes."), max_tokens=40
    ).result()
    assert (opened.reasoning, opened.content) == ("So.", "Yes.")
    whole = engine.chat(ASKED, split_reasoning=False, **options).result()
    assert whole.content == "<think>\nSo it is.\n</think>\n\nYes."


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
    assert engine.generate("a", max_tokens=2, temperature=0, unparse_special=True).text


def test_messages_of_every_shape() -> None:
    """Parts of text become text; whatever is none is refused with its place."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "user", "content": parts, "name": "x"}]) == [
        {"role": "user", "content": "ab", "name": "x"}
    ]
    assert plain_messages([{"role": "assistant", "tool_calls": []}])[0]["content"] is None
    bad: list[tuple[Any, type[Exception], str]] = [
        ("hello", TypeError, "messages must be a list"),
        ([], ValueError, "empty"),
        (["hello"], TypeError, r"messages\[0\]"),
        ([{"content": "a"}], ValueError, r"messages\[0\] must have a 'role'"),
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
    """What an answer may be."""

    name: str
    inhabitants: int


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
        ({"type": "xml"}, ValueError, "must be 'text', 'json_object' or 'json_schema', not 'xml'"),
        ({"type": "json_schema"}, ValueError, "must be a dict with a 'schema'"),
        ({"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, og.GrammarError, "at /not: 'not' is not"),
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
    """Only one of the two can be meant."""
    with pytest.raises(ValueError, match="response_format and grammar say both"):
        engine.chat(ASKED, response_format=City, grammar=og.Grammar.choices(["a"]))


@pytest.mark.parametrize("opened", [False, True], ids=["opened by the model", "opened by the prompt"])
def test_a_shape_after_the_reasoning(engine: og.Engine, smollm2: og.Model, opened: bool) -> None:
    """What is thought is free, and the answer behind it has its shape."""
    template = ChatTemplate(THINKING)
    options: dict[str, Any] = {"template": template, "variables": {"open_thought": opened}}
    reply = engine.chat(
        ASKED, response_format=City, reasoning_budget=12, temperature=0, max_tokens=200, **options
    ).result()
    if opened:
        assert reply.reasoning
    assert isinstance(reply.parsed(), City)
    chat_format = engine._format(template)
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
    """The model is made to answer after so many tokens of reasoning; without reasoning nothing is different."""
    template = ChatTemplate(THINKING)
    options: dict[str, Any] = {"template": template, "variables": {"open_thought": True}, "temperature": 0}
    endless = og.SamplingParams(temperature=0, logit_bias=dict.fromkeys(engine.model.vocab.eog_tokens(), float("-inf")))
    free = engine.chat(ASKED, sampling=endless, max_tokens=60, **options).result()
    assert free.content == ""  # it does not know the mark, and goes on
    for n in (0, 1, 10, 30):
        reply = engine.chat(ASKED, sampling=endless, max_tokens=60, reasoning_budget=n, **options).result()
        thought = engine.model.vocab.tokenize(reply.reasoning, add_special=False)
        assert len(thought) <= n + 1
        assert free.reasoning.startswith(reply.reasoning)
        assert reply.content
        assert len(reply.completion.tokens) == 60
    plain = engine.chat(ASKED, reasoning_budget=1, **GREEDY).result()
    assert plain.content == engine.chat(ASKED, **GREEDY).result().content
    with pytest.raises(ValueError, match="reasoning_budget must be from 0"):
        engine.chat(ASKED, reasoning_budget=-1)


def test_budget() -> None:
    """It counts from the mark that opens the reasoning to the one that closes it, and ends at a whole character."""

    def closes_at(pieces: list[bytes], n: int, inside: bool = True) -> int | None:
        budget = Budget(n, b"<think>", b"</think>", inside=inside, closing=[1])
        return next((i for i, piece in enumerate(pieces) if budget.push(piece)), None)

    words = [b"one ", b"two ", b"three ", b"four "]
    assert closes_at(words, 2) == 1
    assert closes_at(words, 9) is None
    assert closes_at([b"a", b"</th", b"ink>", *words], 3) is None
    assert closes_at(words, 1, inside=False) is None  # an answer, no reasoning
    assert closes_at([b"\n", b"<th", b"ink>", *words], 2, inside=False) == 3
    assert closes_at(["Ä".encode()[:1], "Ä".encode()[1:], b"b"], 1) == 1
    assert closes_at([b"\xe2", b"\x82", b"\xac", b"b"], 2) == 2

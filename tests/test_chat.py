"""engine.chat and Chat: conversations, as their users see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.messages import plain_messages
from offgrid_llama.chat.prompt import prompt_tokens
from offgrid_llama.engine import Chat, FinishReason

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

"""Fitting: what clients send is made into what each template takes, on the real templates of llama.cpp's submodule."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.golden_chats import TEMPLATES
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.fitting import Fitting

NEEDS_MORE = {"fireworks-ai-llama-3-firefunction-v2.jinja"}
"""Templates that need variables of their own."""
NAMES = sorted({path.name for path in TEMPLATES.glob("*.jinja")} - NEEDS_MORE)
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


NOTHING = {"tool_calls": None, "refusal": None, "audio": None, "function_call": None, "reasoning_content": None}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a system message": [system("AAA"), user("BBB")],
    "a system message later": [user("AAA"), assistant("BBB"), system("CCC"), user("DDD")],
    "two system messages": [system("AAA"), system("BBB"), user("CCC")],
    "a developer's message": [system("AAA", "developer"), user("BBB")],
    "two of the user in a row": [user("AAA"), user("BBB")],
    "two of the assistant in a row": [user("AAA"), assistant("BBB"), assistant("CCC"), user("DDD")],
    "no calls": [user("AAA"), assistant("BBB", tool_calls=[]), user("CCC")],
    "null for what is not there": [user("AAA"), assistant("BBB", **NOTHING), user("CCC")],
}


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / name).read_text(encoding="utf-8"), name=name)


def rendered(made: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    """Return the prompt of a conversation that was fitted."""
    fitting = Fitting(made)
    variables: dict[str, Any] = {"tools": [TOOL]} if "tool_use" in made.name else {}
    return made.render(fitting.fit_rows(fitting.fit_roles(messages)), **variables)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_template_takes_it(name: str, conversation: str) -> None:
    """Every text of the conversation is in the prompt, and nothing is written as "None".

    They are in their order, but that some templates gather all system messages at the beginning.
    """
    prompt = rendered(template(name), CONVERSATIONS[conversation])
    places = [prompt.find(message["content"]) for message in CONVERSATIONS[conversation]]
    assert -1 not in places
    assert places == sorted(places) or conversation == "a system message later"
    assert "None" not in prompt


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_takes_stays(name: str) -> None:
    """A conversation that any template takes is rendered as it is."""
    made = template(name)
    messages = [user("AAA"), assistant("BBB"), user("CCC")]
    variables: dict[str, Any] = {"tools": [TOOL]} if "tool_use" in name else {}
    assert rendered(made, messages) == made.render(messages, **variables)


def test_folding() -> None:
    """Where the template has no system message, it begins the next user message; at the end it is one."""
    gemma = Fitting(template("google-gemma-2-2b-it.jinja"))
    assert gemma.fit_roles([system("AAA"), system("BBB"), user("CCC")]) == [user("AAA\n\nBBB\n\nCCC")]
    qwen = Fitting(template("Qwen3.5-4B.jinja"))
    assert qwen.fit_roles([system("AAA"), system("BBB"), user("CCC")]) == [system("AAA\n\nBBB"), user("CCC")]
    assert gemma.fit_roles([user("AAA"), assistant("BBB"), system("CCC")]) == [
        user("AAA"),
        assistant("BBB"),
        user("CCC"),
    ]
    assert gemma.fit_rows([user("AAA"), user("BBB")]) == [user("AAA\n\nBBB")]
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}]
    rows = [user("AAA"), assistant("", tool_calls=calls), assistant("BBB")]
    assert gemma.fit_rows(rows) == rows  # calls are no text that could be joined


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct.jinja", "google-gemma-2-2b-it.jinja"])
@pytest.mark.parametrize("message", [{"role": "user"}, user(None)])
def test_no_content(name: str, message: dict[str, Any]) -> None:
    """A message without a content that the template needs is told by its place, in no words of jinja2."""
    with pytest.raises(ValueError, match=r"^messages\[1\] has no content, and this template needs one$"):
        Fitting(template(name)).fit_roles([user("AAA"), message])


def test_a_template_that_reads_other_keys() -> None:
    """A message without content is left to a template that does not read it."""
    made = ChatTemplate("{% for message in messages %}{{ message.question or message.content }}{% endfor %}")
    assert rendered(made, [{"role": "user", "content": "AAA"}]) == "AAA"
    other = ChatTemplate("{% for message in messages %}<{{ message.question }}>{% endfor %}")
    assert rendered(other, [{"role": "user", "question": "AAA"}]) == "<AAA>"


def test_contents_of_parts() -> None:
    """A template that takes parts only gets parts."""
    source = "{% for message in messages %}{% for part in message.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
    assert rendered(ChatTemplate(source), [user("AAA"), user("")]) == "<AAA>"


def test_a_template_that_cannot_be_probed() -> None:
    """A template that needs variables of its own gets the conversation as it is."""
    made = ChatTemplate("{{ functions.all }}{% for message in messages %}{{ message.content }}{% endfor %}")
    fitting = Fitting(made)
    messages = [system("AAA"), user("BBB"), user("CCC")]
    assert fitting.fit_rows(fitting.fit_roles(messages)) == messages

"""Chat formats, formatters and handlers against what llama-cpp-python 0.3.36 gave for the same conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers import llama_cpp_facts as facts
from offgrid_llama.compat.llama_cpp import llama_chat_format as ours
from offgrid_llama.compat.llama_cpp.chat_request import ChatRequest
from offgrid_llama.compat.llama_cpp.llama_callbacks import LogitsProcessorList, StoppingCriteriaList
from offgrid_llama.compat.llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar

THEIRS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "llama_cpp_chat_formats.json").read_text("utf-8")
)
CORRECTED = {
    "a part of text": "it leaves out texts in parts, without a word",
    "no content": "it refuses calls of tools in the form that OpenAI's clients send",
    "variables, config": "tools are None in ours, and not undefined",
    "auto, a message": "a grammar lets the model write no message",
    "auto, a call": "the name of the function is missing from function_call",
}
"""Cases that are something else in llama-cpp-python: why. The other cases are the same."""


def same(part: str, found: dict[str, Any]) -> None:
    """Check that our facts are theirs, but for those that are corrected, all of which differ."""
    found = json.loads(json.dumps(found))
    assert found.keys() == THEIRS[part].keys()
    names = {name for name in found if name.partition(": ")[2].removesuffix(", streamed") in CORRECTED}
    names |= {name for name in found if name.startswith("variables, config")}
    assert {name: found[name] for name in found if name not in names} == {
        name: told for name, told in THEIRS[part].items() if name not in names
    }
    assert any(found[name] != THEIRS[part][name] for name in names)


def test_prompts_are_the_same() -> None:
    """Of each text format, for each conversation: prompt, stop and added_special, or the error."""
    same("formats", facts.format_facts(ours))


def test_prompts_of_templates_are_the_same() -> None:
    """Those of Jinja2ChatFormatter and of tokenizer_config.json, and the guesses of a format by a template."""
    same("templates", facts.template_facts(ours))


def test_handlers_ask_and_answer_the_same() -> None:
    """What ``create_completion`` is asked for, and what is made of its answers and their chunks."""
    same("handlers", facts.handler_facts(ours))


@pytest.mark.parametrize("name", facts.FORMATS)
def test_texts_in_parts_are_those_in_one_piece(name: str) -> None:
    """A message whose content is a list of parts has the prompt that its text has; pictures are left out."""
    formatter = getattr(ours, facts.FORMATS[name])
    parts = [
        {"type": "text", "text": "Lo"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "ok."},
    ]
    whole, cut = (facts.conversation("s:Be brief.", ("u", content), "a:Yes") for content in ("Look.", parts))
    assert formatter(messages=cut) == formatter(messages=whole)


def test_a_message_after_a_free_choice() -> None:
    """No grammar holds the message that the model has chosen to write; it is answered like any other."""
    llama = facts.FakeLlama("message", "It rains.")
    answer = ours.chatml_function_calling(llama=llama, messages=facts.ASKED, tools=[facts.TOOL], tool_choice="auto")
    assert [call["grammar"] for call in llama.calls] == [True, False]
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "It rains."}


def test_a_call_after_a_free_choice() -> None:
    """The call is in function_call as well, with its name."""
    llama = facts.FakeLlama("functions.weather", facts.ARGUMENTS, "")
    answer = ours.chatml_function_calling(llama=llama, messages=facts.ASKED, tools=[facts.TOOL], tool_choice="auto")
    message = answer["choices"][0]["message"]
    assert message["function_call"] == {"name": "weather", "arguments": facts.ARGUMENTS}
    assert [call["function"] for call in message["tool_calls"]] == [message["function_call"]]


def test_no_free_choice_but_auto() -> None:
    """Any other choice by name is an error that says it."""
    with pytest.raises(ValueError, match=r"tool_choice.*'required'"):
        ours.chatml_function_calling(
            llama=facts.FakeLlama(), messages=facts.ASKED, tools=[facts.TOOL], tool_choice="required"
        )


def grammar_for(**keywords: Any) -> LlamaGrammar | None:
    """Return the grammar that a request asks for."""
    return ChatRequest.of(facts.FakeLlama(), facts.ASKED, keywords).grammar_of_format()


def test_json_by_a_schema() -> None:
    """llama-cpp-python's form and OpenAI's give the same grammar; without a schema it is any object."""
    forms: list[dict[str, Any]] = [
        {"type": "json_object", "schema": facts.SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": facts.SCHEMA}},
    ]
    for form in forms:
        grammar = grammar_for(response_format=form)
        assert grammar is not None
        assert json.loads(grammar.grammar.text)["required"] == ["city"]
    forms = [{"type": "json_object"}, {"type": "json_schema"}, {"type": "json_object", "schema": {"type": "no"}}]
    for form in forms:
        grammar = grammar_for(response_format=form)
        assert grammar is not None
        assert grammar._grammar == JSON_GBNF


def test_the_requests_own_grammar() -> None:
    """It holds where no JSON is asked for."""
    own = LlamaGrammar.from_string('root ::= "x"')
    assert grammar_for(grammar=own, response_format={"type": "text"}) is own
    assert grammar_for(grammar=own) is own
    assert grammar_for(grammar=own, response_format={"type": "json_object"}) is not own


def test_handlers_hand_on_what_they_are_given() -> None:
    """Lists of callables are the caller's own objects, and unknown keywords go to the formatter."""
    told: dict[str, Any] = {}

    def formatter(*, messages: Any, **keywords: Any) -> ours.ChatFormatterResponse:
        told.update(keywords)
        return ours.ChatFormatterResponse("x", stopping_criteria=criteria)

    criteria, processors = StoppingCriteriaList([]), LogitsProcessorList([])
    llama = facts.FakeLlama("y")
    handler = ours.chat_formatter_to_chat_completion_handler(formatter)
    handler(llama=llama, messages=[], logits_processor=processors, thinking=True, seed=3)
    assert llama.calls[0]["stopping_criteria"] is criteria
    assert llama.calls[0]["logits_processor"] is processors
    assert told == {"functions": None, "function_call": None, "tools": None, "tool_choice": None, "thinking": True}


def test_a_default_is_not_shared() -> None:
    """The list of stop strings of one request is not that of the next."""
    llama = facts.FakeLlama("x", "y")
    handler = ours.get_chat_completion_handler("vicuna")
    for _ in range(2):
        handler(llama=llama, messages=facts.ASKED)
        assert llama.calls[-1]["stop"] == []
        llama.calls[-1]["stop"].append("z")


def test_names_of_handlers() -> None:
    """Handlers are registered once for the process, and taken by their names."""
    registry = ours.LlamaChatCompletionHandlerRegistry()
    assert registry is ours.LlamaChatCompletionHandlerRegistry()
    with pytest.raises(ours.LlamaChatCompletionHandlerNotFoundException, match=r"'mine', but llama-2, .*gemma"):
        ours.get_chat_completion_handler("mine")

    @ours.register_chat_completion_handler("mine")
    def mine(*, llama: Any, messages: Any, **kwargs: Any) -> Any:
        return "answer"

    try:
        assert ours.get_chat_completion_handler("mine") is mine
        with pytest.raises(ValueError, match="'mine' already; overwrite=True"):
            registry.register_chat_completion_handler("mine", mine)
        registry.register_chat_completion_handler("mine", mine, overwrite=True)
    finally:
        registry.unregister_chat_handler("mine")
    with pytest.raises(ValueError, match="no chat handler 'mine'"):
        registry.unregister_chat_handler("mine")


def test_errors_of_templates() -> None:
    """One that does not compile is refused at once, one that refuses a conversation is a ValueError that names the line."""
    with pytest.raises(og.ChatTemplateError, match="line 1"):
        ours.Jinja2ChatFormatter("{% if %}", "", "")
    formatter = ours.Jinja2ChatFormatter("\n{{ raise_exception('Only users.') }}", "", "")
    with pytest.raises(ValueError, match=r"line 2: .*Only users\."):
        formatter(messages=[])


@pytest.mark.parametrize("config", [{}, {"chat_template": [], "bos_token": "", "eos_token": ""}, "x"])
def test_errors_of_tokenizer_configs(config: Any) -> None:
    """The error names what is missing."""
    with pytest.raises((TypeError, ValueError), match=r"tokenizer_config must (have chat_template|be a dict)"):
        ours.hf_tokenizer_config_to_chat_formatter(config)

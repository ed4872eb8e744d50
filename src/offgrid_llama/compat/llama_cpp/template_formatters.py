"""Chat formatters of chat templates: Jinja, and tokenizers of transformers. Templates run in offgrid_llama's sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from offgrid_llama.chat.template.template import ChatTemplate
from offgrid_llama.errors import ChatTemplateError

from .chat_formatter import ChatFormatter, ChatFormatterResponse
from .chat_handlers import chat_formatter_to_chat_completion_handler
from .chat_registry import LlamaChatCompletionHandler
from .llama_callbacks import StoppingCriteriaList, StopTokens

__all__ = [
    "Jinja2ChatFormatter", "TemplateRefusal", "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter", "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
]  # fmt: skip


class TemplateRefusal(ChatTemplateError, ValueError):  # noqa: N818 - the template refuses, as with raise_exception()
    """A chat template refuses a conversation, or cannot render it. It is also the ValueError that programs expect."""


class Jinja2ChatFormatter(ChatFormatter):
    """A formatter of a Jinja template.

    Args:
        template: its text.
        eos_token: the text of the token that ends an answer.
        bos_token: the text of the token that begins a prompt.
        add_generation_prompt: end the prompt with the beginning of the answer.
        stop_token_ids: tokens that end an answer.

    Raises ChatTemplateError for a template that does not compile.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:
        self.template = template
        self.eos_token = eos_token
        self.bos_token = bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        self._compiled = ChatTemplate(template, bos_token=bos_token, eos_token=eos_token)

    @staticmethod
    def strftime_now(f: str) -> str:
        """Return the local time in a format of strftime()."""
        return datetime.now().strftime(f)

    @staticmethod
    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Return a value as JSON, as templates have it."""
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def __call__(
        self,
        *,
        messages: Any,
        functions: Any = None,
        function_call: Any = None,
        tools: Any = None,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> ChatFormatterResponse:
        """Return the prompt. ``kwargs`` are variables for the template.

        Raises ChatTemplateError, which is a ValueError as well, where the template refuses the conversation.
        """
        variables = {
            "add_generation_prompt": self.add_generation_prompt,
            "functions": functions,
            "function_call": function_call,
            "tools": tools,
            "tool_choice": tool_choice,
        }
        prompt = _rendered(self._compiled, messages, {**variables, **kwargs})
        criteria = None
        if self.stop_token_ids is not None:
            criteria = StoppingCriteriaList([StopTokens(self.stop_token_ids)])
        return ChatFormatterResponse(prompt, [self.eos_token], criteria, added_special=True)

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """Return a chat handler that completes the prompts."""
        return chat_formatter_to_chat_completion_handler(self)


def _rendered(template: ChatTemplate, messages: Any, variables: Mapping[str, Any]) -> str:
    """Return a template's text for a conversation."""
    try:
        return template.render(messages, **variables)
    except ChatTemplateError as error:
        raise TemplateRefusal(str(error)) from error


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: str | os.PathLike[str]) -> ChatFormatter:
    """Return the formatter of a tokenizer, as transformers loads it. Raises ImportError, and what transformers raises."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def format_autotokenizer(messages: Any, **kwargs: Any) -> ChatFormatterResponse:
        tokenizer.use_default_system_prompt = False
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        return ChatFormatterResponse(prompt, tokenizer.eos_token, added_special=True)

    return format_autotokenizer


def hf_autotokenizer_to_chat_completion_handler(
    pretrained_model_name_or_path: str | os.PathLike[str],
) -> LlamaChatCompletionHandler:
    """Return the chat handler of a tokenizer, as transformers loads it."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: dict[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """Return the formatter of the contents of a ``tokenizer_config.json``.

    Args:
        tokenizer_config: it must have ``chat_template``, ``bos_token`` and ``eos_token``, which are texts.
        add_generation_prompt: put an empty message of the assistant behind the conversation. Templates end that like any
            other message; the variable of this name is for callers of the formatter.

    Raises TypeError and ValueError for values that are not such, and ChatTemplateError for a template that does not compile.
    """
    if not isinstance(tokenizer_config, dict):
        raise TypeError(f"tokenizer_config must be a dict, not {type(tokenizer_config).__name__}")
    for name in ("chat_template", "bos_token", "eos_token"):
        if not isinstance(tokenizer_config.get(name), str):
            raise ValueError(f"tokenizer_config must have {name}, which is a str")
    bos, eos = tokenizer_config["bos_token"], tokenizer_config["eos_token"]
    template = ChatTemplate(tokenizer_config["chat_template"], bos_token=bos, eos_token=eos)

    def format_tokenizer_config(messages: Any, **kwargs: Any) -> ChatFormatterResponse:
        if add_generation_prompt:
            messages = [*messages, {"role": "assistant", "content": ""}]
        prompt = _rendered(template, messages, {"add_generation_prompt": False, **kwargs})
        return ChatFormatterResponse(prompt, [eos, bos], added_special=True)

    return format_tokenizer_config


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: dict[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """Return the chat handler of the contents of a ``tokenizer_config.json``; see its formatter."""
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)

"""The chat handlers ``functionary-v1`` and ``functionary-v2``: one function, which reads the version from the tokenizer.

The prompt is made by the chat template of a tokenizer of transformers. Any object with its ``apply_chat_template`` and
``additional_special_tokens`` will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import functionary_v1 as v1
from . import functionary_v2 as v2
from .chat_answers import chat_answer
from .chat_formatter import text_of
from .chat_request import ChatRequest, as_handler
from .functionary_functions import SYSTEM_MESSAGE, RequestedFunctions
from .functionary_schema import namespace_of

__all__ = ["functionary_v1_v2_chat_handler"]


def _answer(request: ChatRequest) -> Any:
    """Answer a conversation, with calls of functions.

    Raises ValueError where the ``Llama`` has no tokenizer of transformers, for functions that cannot be used, and with
    ``stream`` where a model of version 1 may call a function.
    """
    tokenizer = getattr(getattr(request.llama, "tokenizer_", None), "hf_tokenizer", None)
    if tokenizer is None:
        raise ValueError("tokenizer: functionary models need a LlamaHFTokenizer, which makes their prompts")
    functions = RequestedFunctions.of(request)
    is_v1 = v1.START_CALL in (tokenizer.additional_special_tokens or ())
    prompt = tokenizer.apply_chat_template(_messages(request, functions), tokenize=False)
    prompt += v1.ANSWER if is_v1 else v2.ANSWER
    if not functions.may_be_called:
        return _message(request, prompt, is_v1=is_v1)
    if is_v1:
        return v1.answer(functions, prompt)
    return v2.stream(functions, prompt) if request.stream else v2.answer(functions, prompt)


def _message(request: ChatRequest, prompt: str, *, is_v1: bool) -> Any:
    """Answer with a text."""
    stop = v1.END_ASSISTANT
    if not is_v1:
        prompt, stop = f"{prompt}{v2.ALL}\n{v2.CONTENT}", v2.STOP
    completion = request.complete(prompt, stream=request.stream, stop=stop, grammar=request.grammar)
    if not request.stream:
        choice = completion["choices"][0]
        completion = {**completion, "choices": [{**choice, "text": choice["text"].lstrip()}]}
    return chat_answer(completion, request.stream)


def _messages(request: ChatRequest, functions: RequestedFunctions) -> list[dict[str, Any]]:
    """Return the messages for the template: those of the system first, and then copies of the conversation's."""
    told = [] if functions.are_off else functions.known
    system = [SYSTEM_MESSAGE] if told is None else [namespace_of(told), SYSTEM_MESSAGE]
    messages: list[dict[str, Any]] = [{"role": "system", "content": text} for text in system]
    return messages + [_message_of(at, message) for at, message in enumerate(request.messages)]


def _message_of(at: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message. The names of functions are in the namespace in it, and a text in parts is in one piece."""
    copy = {**message}
    if "role" not in message:
        raise ValueError(f"messages[{at}] has no role")
    if isinstance(message.get("content"), list):
        copy["content"] = text_of(message)
    if message["role"] == "function" and "name" in message:
        copy["name"] = f"functions.{message['name']}"
    if call := message.get("function_call"):
        if "name" not in call:
            raise ValueError(f"messages[{at}].function_call has no name")
        copy["function_call"] = {**call, "name": f"functions.{call['name']}"}
    return copy


functionary_v1_v2_chat_handler = as_handler(
    _answer, "functionary_v1_v2_chat_handler", without=("seed", "logit_bias", "logprobs", "top_logprobs")
)  # fmt: skip

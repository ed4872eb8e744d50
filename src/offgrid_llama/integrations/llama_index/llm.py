"""A model of LlamaIndex on an engine of this process. It needs llama-index-core alone.

All objects with one model and the same options share an engine, so that their requests share its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from pydantic import Field

from offgrid_llama.chat.tools.tool import ToolCall
from offgrid_llama.engine.chat_options import ChatArguments
from offgrid_llama.integrations.asking import choice_of, engine_of, name_of, submitted, submitted_prompt
from offgrid_llama.tasks.request_options import RequestArguments

from .answers import AnswerReader, CompletionReader, TextReader, json_so_far
from .component import OfModel
from .messages import calls_of, messages_of
from .structured import HeldToSchema

__all__ = ["OffgridLlamaLLM"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop")
_OF_LLAMA_INDEX = {"allow_parallel_tool_calls", "strict", "tool_required", "verbose"}
"""Options of a call that are for LlamaIndex, or say nothing here. Schemas are held with or without "strict"."""
_OF_CHATS = {*ChatArguments.__annotations__, "response_format"} - {*RequestArguments.__annotations__}
"""Options that a prompt without a chat's template does not have."""


class OffgridLlamaLLM(OfModel, HeldToSchema):
    """A model of LlamaIndex for chats, tools and structured output.

    A task that is cancelled, and a stream that is closed, cancel their request. Options of a call (``chat``, ``complete``
    and so on) may be any of ``Engine.chat``; those of the model apply where a call has none.

    Attributes:
        model: the name or path of a model, or an Engine.
        temperature, top_p, top_k, min_p, seed, max_tokens: as those of ``Engine.chat``; None is the engine's default, and
            for ``max_tokens`` the end of the sequence.
        stop: strings that end an answer.
        reasoning_budget: the most tokens of reasoning; 0 is none, None is no limit.
        is_function_calling_model: whether LlamaIndex gives this model tools; where it is False, AgentWorkflow makes agents
            that describe them in words.
        engine_options: further arguments of Engine, such as ``{"n_ctx": 32768}``, where ``model`` is a name or path.
        additional_kwargs: further options of ``Engine.chat``, such as ``{"variables": {"enable_thinking": False}}``.
    """

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    stop: list[str] | str | None = None
    reasoning_budget: int | None = Field(None, ge=0)
    is_function_calling_model: bool = True
    engine_options: dict[str, Any] = Field(default_factory=dict)
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)

    # What LlamaIndex asks about it ---------------------------------------------------------------------------------------

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex sizes its prompts by. It takes the engine, which is made if this is the first use of it."""
        return LLMMetadata(
            context_window=engine_of(self.model, self.engine_options).n_ctx_seq,
            num_output=self.max_tokens or DEFAULT_NUM_OUTPUTS,
            is_chat_model=True,
            is_function_calling_model=self.is_function_calling_model,
            model_name=name_of(self.model),
        )

    def to_payload(self) -> dict[str, Any]:
        """Return what events tell of this model, which does not take the engine."""
        found: dict[str, Any] = self.to_dict()
        return {**found, "model_name": found["model"]}

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text. ``Settings.tokenizer = llm.tokenize`` makes LlamaIndex count these."""
        return engine_of(self.model, self.engine_options).model.vocab.tokenize(text, add_special=False)

    # Requests ------------------------------------------------------------------------------------------------------------

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a call, with those of the model where it has none."""
        own = {"reasoning_budget": self.reasoning_budget, **self._sampling(), **self.additional_kwargs}
        return self._checked({**own, **options})

    def _sampling(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SAMPLING}

    @staticmethod
    def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if name not in _OF_LLAMA_INDEX}
        if given.get("n") not in (None, 1):
            raise ValueError("n: LlamaIndex's responses have one answer each; ask several times")
        if given.get("tools"):
            given["tools"] = [_tool(tool) for tool in given["tools"]]
        if "tool_choice" in given:
            given["tool_choice"] = choice_of(given["tool_choice"])
        return given

    def _asked(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> AnswerReader:
        """Submit a conversation."""
        completion = submitted(self.model, self.engine_options, messages_of(messages), self._options(options))
        return AnswerReader(completion, name_of(self.model), self._piece)

    def _prompted(self, prompt: str, formatted: bool, options: Mapping[str, Any]) -> CompletionReader | TextReader:
        """Submit a prompt, which is a message of the user unless it is formatted already."""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a text, not {type(prompt).__name__}")
        if not formatted:
            return CompletionReader(self._asked([ChatMessage(role=MessageRole.USER, content=prompt)], options))
        own = {name: value for name, value in self.additional_kwargs.items() if name not in _OF_CHATS}
        given = self._checked({**self._sampling(), **own, **options})
        completion = submitted_prompt(self.model, self.engine_options, prompt, given)
        return TextReader(completion, name_of(self.model), self._piece)

    def _piece(self, token: int) -> bytes:
        return engine_of(self.model, self.engine_options).model.vocab.piece(token)

    # Answers -------------------------------------------------------------------------------------------------------------

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to a conversation. Raises as ``Engine.chat`` does, and ValueError for images and the like."""
        return _whole(self._asked(messages, kwargs))

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do what ``chat`` does, on an event loop. Cancelling the task cancels the request."""
        return await _whole_async(await asyncio.to_thread(self._asked, messages, kwargs))

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        """Return the answer as it grows. Closing the iterator cancels the request."""
        return _stream(self._asked(messages, kwargs))

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        """Do what ``stream_chat`` does, on an event loop."""
        return _stream_async(await asyncio.to_thread(self._asked, messages, kwargs))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the answer to a prompt.

        Args:
            prompt: a message of the user; or, if ``formatted``, the text that the answer follows, control tokens included.
            formatted: whether the prompt is as the model shall see it. There are no tools then, and reasoning is text.
            kwargs: options of ``Engine.chat``; for a formatted prompt of ``Engine.submit``.
        """
        return _whole(self._prompted(prompt, formatted, kwargs))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Do what ``complete`` does, on an event loop. Cancelling the task cancels the request."""
        return await _whole_async(await asyncio.to_thread(self._prompted, prompt, formatted, kwargs))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        """Return the answer to a prompt as it grows. Closing the iterator cancels the request."""
        return _stream(self._prompted(prompt, formatted, kwargs))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """Do what ``stream_complete`` does, on an event loop."""
        return _stream_async(await asyncio.to_thread(self._prompted, prompt, formatted, kwargs))

    # Tools ---------------------------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: Sequence[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of ``chat`` for a conversation with tools.

        Args:
            tools: tools of LlamaIndex. Calls have arguments that match their schemas.
            user_msg: the last message.
            chat_history: those before it.
            verbose: unused.
            allow_parallel_tool_calls: whether one answer may have several calls.
            tool_required: whether the model must call a tool.
            tool_choice: "auto", "required" or "any", "none", or the name of the tool that it must call.
            kwargs: further options of ``chat``.
        """
        del verbose
        messages = [*(chat_history or ())]
        if user_msg:
            is_text = isinstance(user_msg, str)
            messages.append(ChatMessage(role=MessageRole.USER, content=user_msg) if is_text else user_msg)
        if not tools:
            return {**kwargs, "messages": messages}
        return {
            **kwargs,
            "messages": messages,
            "tools": [_tool(tool) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else None),
            "parallel_tool_calls": allow_parallel_tool_calls,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of a response; those of a stream that goes on have the arguments that have come so far.

        Args:
            response: the response.
            error_on_no_tool_call: raise ValueError where there are none.
            kwargs: unused.

        Raises ValueError where the answer has ended within a call, such as at ``max_tokens``.
        """
        del kwargs
        calls = calls_of(response.message)
        if not calls and error_on_no_tool_call:
            raise ValueError("the answer has no tool calls")
        reason = response.raw.get("finish_reason") if isinstance(response.raw, Mapping) else None
        return [
            ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=_arguments(call, reason)) for call in calls
        ]


def _tool(tool: Any) -> Any:
    """Return a tool as an engine takes it; those of LlamaIndex may have descriptions of any length."""
    return tool.metadata.to_openai_tool(skip_length_check=True) if isinstance(tool, BaseTool) else tool


def _arguments(call: ToolCall, reason: str | None) -> dict[str, Any]:
    """Return the arguments of a call, as far as they are; of an answer that has ended, for a reason, they must be whole."""
    if call.is_whole:
        return call.parsed
    if reason is not None:
        raise ValueError(f"the arguments of {call.name!r} are cut off: the answer has ended as {reason!r}")
    try:
        found = json_so_far(call.arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _whole(reader: Any) -> Any:
    """Wait for the end of an answer, and return it. The reader is one of llama_index_answers, as it is below."""
    with reader.completion as completion:
        completion.result()
        return reader.whole()


async def _whole_async(reader: Any) -> Any:
    with reader.completion as completion:
        await completion
        return reader.whole()


def _stream(reader: Any) -> Iterator[Any]:
    with reader.completion as completion:
        for each in completion:
            yield reader.grown(each)


async def _stream_async(reader: Any) -> AsyncIterator[Any]:
    with reader.completion as completion:
        async for each in completion:
            yield reader.grown(each)

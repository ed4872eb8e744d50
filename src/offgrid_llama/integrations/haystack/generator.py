"""A chat generator of Haystack on an Engine of this process.

All components with one model and the same options share an engine, so that their requests share its steps.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    ReasoningContent,
    StreamingCallbackT,
    StreamingChunk,
    ToolCallDelta,
    select_streaming_callback,
)
from haystack.tools import (
    ToolsType,
    deserialize_tools_or_toolset_inplace,
    flatten_tools_or_toolsets,
    serialize_tools_or_toolset,
)
from haystack.utils import deserialize_callable, serialize_callable
from pydantic import BaseModel

from offgrid_llama.engine.chat_completion import ChatCompletion, Delta
from offgrid_llama.integrations.asking import checked, engine_of, name_of, submitted

from .messages import answer_of, messages_of, metadata

__all__ = ["OffgridLlamaChatGenerator"]

# Annotations are not put off in this module: some versions of Haystack read those of ``run`` as they are.


@component
class OffgridLlamaChatGenerator:
    """A chat generator of Haystack.

    A task that is cancelled, and a streaming callback that raises, cancel their request.

    Args:
        model: the name or path of a model, or an Engine.
        generation_kwargs: options of ``Engine.chat``, and fields of SamplingParams, such as
            ``{"temperature": 0, "max_tokens": 200, "response_format": Person}``. Without "max_tokens" an answer may fill its
            sequence.
        streaming_callback: called with each piece of an answer.
        tools: Haystack's tools or toolsets that the model may call. All arguments of a call match its tool's schema.
        engine_options: further arguments of Engine, such as ``{"n_ctx": 32768}``, where ``model`` is a name or path.

    Raises ValueError for a model of another kind.
    """

    def __init__(
        self,
        model: Any,
        *,
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.model = checked(model)
        self.generation_kwargs = generation_kwargs or {}
        self.streaming_callback = streaming_callback
        self.tools = tools
        self.engine_options = engine_options or {}
        _described(tools)

    # What Haystack asks about it -----------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Load the model."""
        engine_of(self.model, self.engine_options)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` takes; an Engine becomes the path of its model."""
        callback = self.streaming_callback
        wanted = self.generation_kwargs.get("response_format")
        kwargs = dict(self.generation_kwargs)
        if isinstance(wanted, type) and issubclass(wanted, BaseModel):
            described = {"name": wanted.__name__, "schema": wanted.model_json_schema()}
            kwargs["response_format"] = {"type": "json_schema", "json_schema": described}
        found: dict[str, Any] = default_to_dict(
            self,
            model=name_of(self.model),
            generation_kwargs=kwargs,
            streaming_callback=serialize_callable(callback) if callback else None,
            tools=serialize_tools_or_toolset(self.tools),
            engine_options=self.engine_options,
        )
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "OffgridLlamaChatGenerator":
        """Return the generator that was written down."""
        deserialize_tools_or_toolset_inplace(data["init_parameters"], key="tools")
        if callback := data["init_parameters"].get("streaming_callback"):
            data["init_parameters"]["streaming_callback"] = deserialize_callable(callback)
        found: OffgridLlamaChatGenerator = default_from_dict(cls, data)
        return found

    # Answers -------------------------------------------------------------------------------------------------------------

    @component.output_types(replies=list[ChatMessage])  # type: ignore[untyped-decorator]
    def run(
        self,
        messages: list[ChatMessage],
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Return the answers to a conversation.

        Args:
            messages: the conversation; a text is a message of the user.
            streaming_callback: in place of the component's.
            generation_kwargs: over those of the component.
            tools: in place of the component's.
        """
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        if not messages:
            return {"replies": []}
        with self._submitted(messages, generation_kwargs, tools, streams=callback is not None) as completion:
            if callback is not None:
                chunks = _Chunks(self, completion)
                for delta in completion:
                    for chunk in chunks.of(delta):
                        callback(chunk)
            return self._replies(completion.result())

    @component.output_types(replies=list[ChatMessage])  # type: ignore[untyped-decorator]
    async def run_async(
        self,
        messages: list[ChatMessage],
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Return the answers to a conversation, as ``run`` does."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        if not messages:
            return {"replies": []}
        streams = callback is not None
        submitting = asyncio.to_thread(self._submitted, messages, generation_kwargs, tools, streams=streams)
        with await submitting as completion:
            if callback is not None:
                chunks = _Chunks(self, completion)
                async for delta in completion:
                    for chunk in chunks.of(delta):
                        called = callback(chunk)
                        if inspect.isawaitable(called):
                            await called
            return self._replies(await completion)

    def _submitted(
        self,
        messages: "Sequence[ChatMessage] | str",
        generation_kwargs: Mapping[str, Any] | None,
        tools: Any,
        *,
        streams: bool,
    ) -> ChatCompletion[Any]:
        options = {**self.generation_kwargs, **(generation_kwargs or {})}
        if streams and options.get("n", 1) != 1:
            raise ValueError("generation_kwargs['n']: a stream has one answer")
        if described := _described(self.tools if tools is None else tools):
            options["tools"] = described
        else:
            options.pop("tool_choice", None)  # of an agent whose tools are spent
        said = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
        return submitted(self.model, self.engine_options, messages_of(said), options)

    def _replies(self, completion: ChatCompletion[Any]) -> dict[str, list[ChatMessage]]:
        name, n = name_of(self.model), len(completion.completion.answers)
        return {"replies": [answer_of(completion, index, name) for index in range(n)]}


def _described(tools: Any) -> list[dict[str, Any]]:
    """Return tools as the engine takes them. Raises ValueError for two of one name."""
    found = [{"type": "function", "function": tool.tool_spec} for tool in flatten_tools_or_toolsets(tools)]
    names = [each["function"]["name"] for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tools: there are two of the name {twice[0]!r}")
    return found


class _Chunks:
    """The pieces of an answer as Haystack streams them: each has one kind of content, with the number of its block.

    Args:
        generator: the component that they come from.
        completion: the answer.
    """

    def __init__(self, generator: OffgridLlamaChatGenerator, completion: ChatCompletion[Any]) -> None:
        self._info = ComponentInfo.from_component(generator)
        self._model = name_of(generator.model)
        self._completion = completion
        self._block: object = None  # "reasoning", "content", or the index of a call
        self._n = -1

    def of(self, delta: Delta) -> list[StreamingChunk]:
        """Return the pieces that a delta makes."""
        found = []
        if delta.reasoning:
            thought = ReasoningContent(reasoning_text=delta.reasoning)
            found.append(self._chunk("reasoning", content="", reasoning=thought))
        if delta.content:
            found.append(self._chunk("content", content=delta.content))
        for call in delta.tool_calls:
            told = ToolCallDelta(call.index, call.name or None, call.arguments or None, call.id or None)
            found.append(self._chunk(call.index, content="", tool_calls=[told]))
        if delta.finish_reason is not None:
            meta = metadata(self._completion, delta.index, self._model)
            reason = meta["finish_reason"]
            found.append(StreamingChunk(content="", meta=meta, component_info=self._info, finish_reason=reason))
        return found

    def _chunk(self, block: object, **content: Any) -> StreamingChunk:
        is_first, self._block = block != self._block, block
        self._n += is_first
        return StreamingChunk(
            **content, meta={"model": self._model}, component_info=self._info, index=self._n, start=is_first
        )

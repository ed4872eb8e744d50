"""Objects of Pydantic classes as answers of LlamaIndex's models: a grammar holds the answer to the schema of the class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import create_flexible_model
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, ValidationError

from offgrid_llama.chat.response_format import parse_as

from .answers import json_so_far

__all__ = ["HeldToSchema"]

_OF_TOOLS = {"allow_parallel_tool_calls", "tool_choice", "tool_required"}
"""Options that LlamaIndex sends along for models that give objects as arguments of a call."""

_dispatcher = instrument.get_dispatcher(__name__)


class HeldToSchema(FunctionCallingLLM):  # type: ignore[misc]  # LlamaIndex is not there for mypy
    """A model whose answers can be objects of Pydantic classes.

    With the default ``pydantic_program_mode`` a grammar holds the answer to the class's schema, of which the prompt says
    nothing. With "function" the object is the arguments of a call that the model must make, and the prompt has the schema as
    that of a tool; with "llm" the prompt has the schema, and nothing holds the answer to it.
    """

    @property
    def _holds(self) -> bool:
        return bool(self.pydantic_program_mode == PydanticProgramMode.DEFAULT)

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Return an object of a class.

        Args:
            output_cls: a Pydantic model.
            prompt: what is asked.
            llm_kwargs: options of ``chat``.
            prompt_args: what the prompt's places are filled with.

        Raises ValueError where the answer is cut off, and Pydantic's for a rule of the class that no schema tells; and as
        ``chat`` does.
        """
        if not self._holds:
            return super().structured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
        _started(output_cls, prompt, prompt_args)
        response = self.chat(self._messages(prompt, prompt_args), **_options(output_cls, llm_kwargs))
        return _ended(_object(output_cls, response))

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Do what ``structured_predict`` does, on an event loop."""
        if not self._holds:
            return await super().astructured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
        _started(output_cls, prompt, prompt_args)
        response = await self.achat(self._messages(prompt, prompt_args), **_options(output_cls, llm_kwargs))
        return _ended(_object(output_cls, response))

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Iterator[Any]:
        """Return the iterator of ``stream_structured_predict``: the object as it grows.

        As long as something of it is missing that the class wants, it is of a class that wants nothing.
        """
        if not self._holds:
            found: Iterator[Any] = super()._structured_stream_call(
                output_cls, prompt, dict(llm_kwargs or {}), **prompt_args
            )
            return found
        responses = self.stream_chat(self._messages(prompt, prompt_args), **_options(output_cls, llm_kwargs))
        return _objects(responses, _Growing(output_cls))

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncIterator[Any]:
        """Do what ``_structured_stream_call`` does, on an event loop."""
        if not self._holds:
            found: AsyncIterator[Any] = await super()._structured_astream_call(
                output_cls, prompt, dict(llm_kwargs or {}), **prompt_args
            )
            return found
        responses = await self.astream_chat(self._messages(prompt, prompt_args), **_options(output_cls, llm_kwargs))
        return _objects_async(responses, _Growing(output_cls))

    def _messages(self, prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> list[ChatMessage]:
        found: list[ChatMessage] = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return found


class _Growing:
    """An object of a class, as its JSON grows."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._class = output_cls
        self._flexible = create_flexible_model(output_cls)
        self._known: Any = None

    def after(self, response: ChatResponse) -> Any:
        """Return the object so far; None where nothing has come to it."""
        if response.raw is not None:  # the last one
            return _object(self._class, response)
        try:
            found = json_so_far(response.message.content)
        except ValueError:  # not one value yet
            return None
        if not isinstance(found, dict) or found == self._known:
            return None
        self._known = found
        try:
            return self._class.model_validate(found)
        except ValidationError:
            return self._flexible.model_validate(found)


def _objects(responses: Iterator[ChatResponse], growing: _Growing) -> Iterator[Any]:
    for response in responses:
        if (found := growing.after(response)) is not None:
            yield found


async def _objects_async(responses: AsyncIterator[ChatResponse], growing: _Growing) -> AsyncIterator[Any]:
    async for response in responses:
        if (found := growing.after(response)) is not None:
            yield found


def _options(output_cls: type[BaseModel], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a chat whose answer is an object of a class."""
    described = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    kept = {name: value for name, value in (options or {}).items() if name not in _OF_TOOLS}
    return {**kept, "response_format": {"type": "json_schema", "json_schema": described}}


def _object(output_cls: type[BaseModel], response: ChatResponse) -> Any:
    """Return the object that a whole answer is."""
    reason = response.raw["finish_reason"]
    if reason != "stop":
        raise ValueError(f"the answer is no whole {output_cls.__name__}: it has ended as {reason!r}")
    return parse_as(output_cls, response.message.content)


def _started(output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=dict(prompt_args))
    _dispatcher.event(event)


def _ended(found: Any) -> Any:
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found

"""A model of Pydantic AI on an Engine of this process.

It needs pydantic-ai-slim alone, and works with the versions 1 and 2.

All objects with one model and the same options share an engine, so that their requests share its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic_ai import exceptions
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse, check_allow_model_requests
from pydantic_ai.usage import RequestUsage

from offgrid_llama.engine.engine import Engine
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.integrations.asking import checked, name_of, prompt_length, submitted

from .errors import engine_errors
from .messages import FINISH_REASONS, SYSTEM, details_of, instructions_of, messages_of, parts_of, usage_of
from .options import options_of
from .profile import profile_of

if TYPE_CHECKING:
    from offgrid_llama.engine.chat_completion import ChatCompletion, Delta

__all__ = ["OffgridLlamaModel"]


@dataclass(init=False)
class OffgridLlamaModel(Model):  # type: ignore[misc]  # Pydantic AI is not there for mypy
    """A model of Pydantic AI.

    A task that is cancelled, and a stream that is closed, cancel their request. Failures of the engine are ModelAPIErrors,
    after which a FallbackModel asks the next model; an option out of its range is the engine's ValueError or TypeError.

    Args:
        model: the name or path of a model, or an Engine.
        engine_options: further arguments of Engine, such as ``{"n_ctx": 32768}``, where ``model`` is a name or path.
        settings: ModelSettings, or OffgridLlamaModelSettings, that apply where a run has none.
        profile: what differs from the usual ModelProfile, or a function that returns one for that.

    Attributes:
        model: the name or path of the model, or the Engine.
        engine_options: as given.

    Raises ValueError for a ``model`` of another type.
    """

    model: Any = field(repr=False)
    engine_options: dict[str, Any]

    unsupported_settings: ClassVar[frozenset[str]] = frozenset(
        {"timeout", "max_retries", "extra_headers", "extra_body", "service_tier", "citations"}
    )
    """Settings of Pydantic AI that say nothing to an engine of this process."""

    def __init__(
        self,
        model: Any,
        *,
        engine_options: Mapping[str, Any] | None = None,
        settings: Any = None,
        profile: Any = None,
    ) -> None:
        self.model = checked(model)
        self.engine_options = dict(engine_options or {})
        context_window = model.n_ctx_seq if isinstance(model, Engine) else None
        super().__init__(settings=settings, profile=profile_of(context_window, profile))

    def __repr__(self) -> str:
        more = {"engine_options": self.engine_options, "settings": self.settings}
        return f"{type(self).__name__}({', '.join([repr(self.model_name), *(f'{k}={v!r}' for k, v in more.items() if v)])})"

    @property
    def model_name(self) -> str:
        """The name or path of the model."""
        return name_of(self.model)

    @property
    def system(self) -> str:
        """The provider, for tracers: "offgrid-llama"."""
        return SYSTEM

    def _prepared(
        self, messages: list[ModelMessage], settings: Any, parameters: ModelRequestParameters
    ) -> tuple[list[dict[str, Any]], dict[str, Any], ModelRequestParameters]:
        """Return a request's messages and options for the engine, and its parameters with the profile applied."""
        settings, parameters = self.prepare_request(settings, parameters)
        told = messages_of(messages, instructions_of(messages, parameters))
        return told, options_of(settings or {}, parameters), parameters

    async def _submitted(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> ChatCompletion[Any]:
        """Submit a conversation; a first one loads the model."""
        return await asyncio.to_thread(submitted, self.model, self.engine_options, messages, options)

    async def request(
        self, messages: list[ModelMessage], model_settings: Any, model_request_parameters: ModelRequestParameters
    ) -> ModelResponse:
        """Return the answer to a history. Raises ModelAPIError, and UserError for what cannot be told to the model."""
        check_allow_model_requests()
        told, options, _ = self._prepared(messages, model_settings, model_request_parameters)
        with engine_errors(self.model_name), await self._submitted(told, options) as completion:
            await completion
            if completion.finish_reason is FinishReason.CANCELLED:
                raise exceptions.ModelAPIError(self.model_name, "the answer was cut off: the engine was closed")
            return ModelResponse(
                parts=parts_of(completion),
                usage=usage_of(completion),
                model_name=self.model_name,
                provider_name=self.system,
                finish_reason=FINISH_REASONS.get(completion.finish_reason),
                provider_details=details_of(completion.finish_reason, completion.warnings),
            )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: Any,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Stream the answer to a history. Raises as ``request`` does; the end of the block cancels what still runs."""
        del run_context
        check_allow_model_requests()
        told, options, parameters = self._prepared(messages, model_settings, model_request_parameters)
        with engine_errors(self.model_name):
            completion = await self._submitted(told, options)
        with completion:
            yield OffgridLlamaStreamedResponse(parameters, completion, self.model_name)

    async def count_tokens(
        self, messages: list[ModelMessage], model_settings: Any, model_request_parameters: ModelRequestParameters
    ) -> RequestUsage:
        """Return the number of tokens of a prompt as ``input_tokens``: all that the model's template writes."""
        told, options, _ = self._prepared(messages, model_settings, model_request_parameters)
        with engine_errors(self.model_name):
            n = await asyncio.to_thread(prompt_length, self.model, self.engine_options, told, options)
        return RequestUsage(input_tokens=n)


@dataclass
class OffgridLlamaStreamedResponse(StreamedResponse):  # type: ignore[misc]
    """An answer as it comes."""

    _completion: ChatCompletion[Any]
    _model_name: str
    _timestamp: datetime = field(default_factory=partial(datetime.now, timezone.utc))

    @property
    def model_name(self) -> str:
        """The name or path of the model."""
        return self._model_name

    @property
    def provider_name(self) -> str:
        """The provider, for tracers."""
        return SYSTEM

    @property
    def provider_url(self) -> None:
        """None: the model is in this process."""

    @property
    def timestamp(self) -> datetime:
        """When the answer began."""
        return self._timestamp

    async def close_stream(self) -> None:
        """Cancel the request."""
        self._completion.cancel()

    async def _get_event_iterator(self) -> AsyncIterator[Any]:
        with engine_errors(self._model_name):
            async for delta in self._completion:
                for event in self._events(delta):
                    yield event

    def _events(self, delta: Delta) -> Iterator[Any]:
        """Yield what a delta adds to the parts of the answer."""
        parts = self._parts_manager
        if delta.reasoning:
            yield from parts.handle_thinking_delta(vendor_part_id="reasoning", content=delta.reasoning)
        if delta.content:  # blanks before a call are no text, which would end a run
            yield from parts.handle_text_delta(
                vendor_part_id="content", content=delta.content, ignore_leading_whitespace=True
            )
        for call in delta.tool_calls:
            event = parts.handle_tool_call_delta(
                vendor_part_id=call.index,
                tool_name=call.name or None,
                args=call.arguments or None,
                tool_call_id=call.id or None,
            )
            if event is not None:
                yield event
        if delta.finish_reason is not None:
            self._end(delta)

    def _end(self, delta: Delta) -> None:
        """Take the numbers of tokens, and why the answer has ended."""
        self._usage = usage_of(self._completion)
        self.finish_reason = FINISH_REASONS.get(delta.finish_reason)
        self.provider_details = details_of(delta.finish_reason, delta.warnings)
        if delta.finish_reason is FinishReason.CANCELLED:
            self.state = "incomplete"  # if it was not cancelled here, the engine was closed

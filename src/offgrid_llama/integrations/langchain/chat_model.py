"""A chat model of LangChain on an Engine of this process. It needs langchain-core alone.

All objects with one model and the same options share an engine, so that their requests share its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from offgrid_llama.integrations.asking import checked, choice_of, engine_of, name_of, prompt_length, submitted
from offgrid_llama.sampling.grammar.type_schema import schema_of_type

from .messages import PROVIDER, answer_of, chunk_of, messages_of

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from offgrid_llama.engine.chat_completion import ChatCompletion, Delta
    from offgrid_llama.model.vocab import Vocab

__all__ = ["ChatOffgridLlama"]

_OF_SERVICES = {"api_key", "base_url", "max_retries", "timeout"}
"""Arguments that LangChain's chat models have in common and that say nothing to an engine of this process."""
_OF_LANGCHAIN = {"ls_structured_output_format", "stream", "strict", "structured_output_format"}
"""Options of a call that are for LangChain or its tracers. Schemas are held with or without "strict"."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "reasoning_budget")


class ChatOffgridLlama(BaseChatModel):  # type: ignore[misc]  # LangChain is not there for mypy
    """A chat model of LangChain.

    A task that is cancelled, and a stream that is closed, cancel their request. Options of a call (``invoke``, ``bind``) may
    be any of ``Engine.chat``, and ``model``; those of the model apply where a call has none.

    Attributes:
        model: the name or path of a model, or an Engine.
        temperature, top_p, top_k, min_p, seed, max_tokens: as those of ``Engine.chat``; None is the engine's default, and
            for ``max_tokens`` the end of the sequence.
        stop: strings that end an answer.
        reasoning_budget: the most tokens of reasoning; 0 is none, None is no limit.
        streaming: stream within ``invoke``, too, so that callbacks get the pieces.
        engine_options: further arguments of Engine, such as ``{"n_ctx": 32768}``, where ``model`` is a name or path.
        model_kwargs: further options of ``Engine.chat``, such as ``{"variables": {"enable_thinking": False}}``.
    """

    model: Any
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    stop: list[str] | str | None = None
    reasoning_budget: int | None = Field(None, ge=0)
    streaming: bool = False
    engine_options: dict[str, Any] = Field(default_factory=dict)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_those_of_services(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if key not in _OF_SERVICES}

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: Any) -> Any:
        return checked(model)

    # What LangChain asks about it ----------------------------------------------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return that LangChain can write it down: there is no secret in it."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return where LangChain finds the class of a model that was written down."""
        return __name__.split(".")[:-1]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The path of an Engine's model in the Engine's place, so that it can be written down, and cached by."""
        return {"model": name_of(self.model)}

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What decides on the answers, for caches and tracers: the same in each process."""
        others = {"stop": self.stop, "engine_options": self.engine_options, "model_kwargs": self.model_kwargs}
        found = {"model": name_of(self.model), **self._sampling(), **others}
        return {name: value for name, value in found.items() if value not in (None, {})}

    def _get_ls_params(self, stop: list[str] | None = None, **options: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **options)
        params["ls_provider"] = PROVIDER
        params.setdefault("ls_model_name", name_of(self.model))
        if stop := stop or _listed(self.stop):
            params["ls_stop"] = stop
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without any that begin or end one."""
        if self.custom_get_token_ids is not None:
            return list(self.custom_get_token_ids(text))
        return engine_of(self.model, self.engine_options).model.vocab.tokenize(text, add_special=False)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return the number of tokens of a prompt: messages and tools as the model's template writes them."""
        given = {**self.model_kwargs, **({"tools": [convert_to_openai_tool(tool) for tool in tools]} if tools else {})}
        return prompt_length(self.model, self.engine_options, messages_of(messages), given)

    # Answers -------------------------------------------------------------------------------------------------------------

    def _sampling(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SAMPLING}

    def _submitted(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> ChatCompletion[Any]:
        """Submit a conversation."""
        own = {"stop": self.stop, **self._sampling(), **self.model_kwargs}
        given = {name: value for name, value in {**own, **options}.items() if value is not None}
        model = given.pop("model", self.model)
        given = {name: value for name, value in given.items() if name not in _OF_LANGCHAIN}
        if stop is not None:
            given["stop"] = stop
        return submitted(model, self.engine_options, messages_of(messages), given)

    def _streamed(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> ChatCompletion[Any]:
        if {**self.model_kwargs, **options}.get("n", 1) != 1:
            raise ValueError("n: a stream has one answer; generate() can have several")
        return self._submitted(messages, stop, options)

    def _result(self, completion: ChatCompletion[Any], options: Mapping[str, Any]) -> ChatResult:
        """Return the answers of a completion that has ended."""
        name, vocab = self._name(options), self._vocab(options)
        n = len(completion.completion.answers)
        return ChatResult(
            generations=[ChatGeneration(message=answer_of(completion, index, name, vocab)) for index in range(n)]
        )

    def _chunk(self, delta: Delta, completion: ChatCompletion[Any], options: Mapping[str, Any]) -> ChatGenerationChunk:
        return ChatGenerationChunk(message=chunk_of(delta, completion, self._name(options), self._vocab(options)))

    def _name(self, options: Mapping[str, Any]) -> str:
        return name_of(options.get("model") or self.model)

    def _vocab(self, options: Mapping[str, Any]) -> Vocab:
        return engine_of(options.get("model") or self.model, self.engine_options).model.vocab

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        del run_manager
        with self._submitted(messages, stop, options) as completion:
            return self._result(completion.result(), options)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        del run_manager
        with await asyncio.to_thread(self._submitted, messages, stop, options) as completion:
            return self._result(await completion, options)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **options: Any
    ) -> Iterator[ChatGenerationChunk]:
        with self._streamed(messages, stop, options) as completion:
            for delta in completion:
                chunk = self._chunk(delta, completion, options)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **options: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        with await asyncio.to_thread(self._streamed, messages, stop, options) as completion:
            async for delta in completion:
                chunk = self._chunk(delta, completion, options)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # Tools and schemas ---------------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **options: Any,
    ) -> Runnable[Any, Any]:
        """Return this model with tools that it may call. Every call has arguments that match the schema of its tool.

        Args:
            tools: functions, LangChain's tools, Pydantic models, or schemas.
            tool_choice: "auto" (None) leaves it to the model, "any" or "required" (True) makes it call one, the name of one
                makes it call that one, "none" forbids calls.
            parallel_tool_calls: whether one answer may have several calls; None is True.
            options: further ones of each call.
        """
        given: dict[str, Any] = {"tools": [convert_to_openai_tool(tool) for tool in tools]}
        if choice := choice_of(tool_choice):
            given["tool_choice"] = choice
        if parallel_tool_calls is not None:
            given["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**given, **options)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **options: Any,
    ) -> Runnable[Any, Any]:
        """Return what answers with an object of a schema: of its class for a Pydantic model, or else a dict.

        Args:
            schema: a Pydantic model, a TypedDict, or a JSON Schema.
            method: "json_schema" holds the answer to the schema, "function_calling" the arguments of a call that the model
                must make; "json_mode" holds the answer to JSON alone, and the prompt must tell the model the schema.
            include_raw: return a dict with the message as "raw", the object as "parsed", and the error in reading it, if
                there is one, as "parsing_error".
            strict: taken as others do; a schema is always held.
            options: further ones of each call.
        """
        del strict
        told = {"kwargs": {"method": method}, "schema": schema}
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        tool = convert_to_openai_tool(schema)
        parser: Any
        if method == "function_calling":
            name = tool["function"]["name"]
            asked = self.bind_tools(
                [tool], tool_choice=name, parallel_tool_calls=False, ls_structured_output_format=told, **options
            )
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)
                if is_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in ("json_schema", "json_mode"):
            asked = self.bind(
                response_format=_response_format(method, schema, tool), ls_structured_output_format=told, **options
            )
            parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        else:
            raise ValueError(f"method must be 'json_schema', 'function_calling' or 'json_mode', not {method!r}")
        if not include_raw:
            return asked | parser
        read = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        unread = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=asked) | read.with_fallbacks([unread], exception_key="parsing_error")


def _listed(stop: list[str] | str | None) -> list[str] | None:
    return [stop] if isinstance(stop, str) else stop


def _response_format(method: str, schema: Any, tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response format of a schema, from its class, itself, or what LangChain makes of it as a tool."""
    if method == "json_mode":
        return {"type": "json_object"}
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        described: Any = schema
        document = schema_of_type(schema) if issubclass(schema, BaseModel) else described.schema()
    elif isinstance(schema, Mapping) and ("type" in schema or "$ref" in schema) and "function" not in schema:
        document = schema
    else:
        document = tool["function"].get("parameters", {"type": "object"})
    return {"type": "json_schema", "json_schema": {"name": tool["function"]["name"], "schema": document}}

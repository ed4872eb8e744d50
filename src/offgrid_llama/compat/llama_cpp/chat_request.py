"""ChatRequest: the keywords of a chat handler, read once, for all handlers."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from offgrid_llama.errors import GrammarError

from .llama_grammar import JSON_GBNF, LlamaGrammar

__all__ = ["ChatRequest", "SamplingOptions", "as_handler", "grammar_of_schema", "json_grammar"]

_logger = logging.getLogger("offgrid_llama.compat")

Tool = Mapping[str, Any]


@dataclass(frozen=True)
class SamplingOptions:
    """The keywords that every handler hands on to ``Llama.create_completion`` as they are, with their defaults."""

    temperature: float = 0.2
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    typical_p: float = 1.0
    max_tokens: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.1
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    model: str | None = None
    logits_processor: Any = None


@dataclass
class ChatRequest:
    """A request to a chat handler.

    Attributes:
        llama: what completes the prompt: a ``Llama``, or any object with its ``tokenize``, ``create_completion`` and
            ``verbose``.
        messages: the conversation.
        sampling: the keywords for ``create_completion``.
        further: the keywords that are not known, which are for the formatter.
        functions, function_call: the old names of tools and the choice among them, as they came.
        tools, tool_choice: the same, whichever names they came by.
        stream: whether the answer comes in chunks.
        stop: the texts that end the answer.
        seed, logit_bias, logprobs, top_logprobs: further keywords for ``create_completion``.
        response_format: whether the answer is JSON, and of which schema.
        grammar: what the answer must be.
    """

    llama: Any
    messages: Any
    sampling: SamplingOptions
    further: dict[str, Any]
    functions: Any = None
    function_call: Any = None
    tools: Any = None
    tool_choice: Any = None
    stream: bool = False
    stop: str | list[str] | None = field(default_factory=list)
    seed: int | None = None
    response_format: Any = None
    grammar: LlamaGrammar | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @classmethod
    def of(cls, llama: Any, messages: Any, keywords: Mapping[str, Any]) -> ChatRequest:
        """Return the request that a handler was called with."""
        own = {name: value for name, value in keywords.items() if name in _OWN}
        sampling = {name: value for name, value in keywords.items() if name in _SAMPLING}
        further = {name: value for name, value in keywords.items() if name not in _OWN and name not in _SAMPLING}
        return cls(llama, messages, SamplingOptions(**sampling), further, **own)

    def use_new_names(self) -> None:
        """Read ``functions`` and ``function_call`` as ``tools`` and ``tool_choice``."""
        if self.functions is not None:
            self.tools = [{"type": "function", "function": function} for function in self.functions]
        if self.function_call in ("none", "auto"):
            self.tool_choice = self.function_call
        elif isinstance(self.function_call, Mapping) and "name" in self.function_call:
            self.tool_choice = {"type": "function", "function": {"name": self.function_call["name"]}}

    def tool(self, name: str) -> Tool | None:
        """Return the tool of a name, None if there is none."""
        return next((tool for tool in self.tools or () if tool["function"]["name"] == name), None)

    def chosen_tool(self) -> Tool | None:
        """Return the tool that must be called, None if there is none. Raises ValueError where it is not one of the tools."""
        if not isinstance(self.tool_choice, Mapping) or self.tools is None:
            return None
        name = self.tool_choice["function"]["name"]
        tool = self.tool(name)
        if tool is None:
            raise ValueError(f"tool_choice: {name!r} is not one of the tools")
        return tool

    def stops(self, *further: str) -> list[str]:
        """Return the texts that end the answer, and further ones behind them."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [*stop, *further]

    def grammar_of_format(self) -> LlamaGrammar | None:
        """Return the grammar that ``response_format`` asks for, else the request's own."""
        wanted = self.response_format
        if wanted is None or wanted["type"] not in ("json_object", "json_schema"):
            return self.grammar
        # {"type": "json_schema", "json_schema": {"schema": {...}}} is OpenAI's form.
        schema = wanted.get("schema", (wanted.get("json_schema") or {}).get("schema"))
        return json_grammar() if schema is None else grammar_of_schema(schema, verbose=self.llama.verbose)

    def grammar_of_tool(self, tool: Tool) -> LlamaGrammar:
        """Return the grammar of a tool's arguments."""
        return grammar_of_schema(tool["function"].get("parameters", {"type": "object"}), verbose=self.llama.verbose)

    def complete(self, prompt: str | list[int], **further: Any) -> Any:
        """Return what ``create_completion`` returns for a prompt. ``further`` keywords replace the request's."""
        return self.llama.create_completion(prompt=prompt, **{**vars(self.sampling), **further})

    def n_logprobs(self) -> int | None:
        """Return for how many tokens the logprobs are asked for, None for no logprobs."""
        return self.top_logprobs if self.logprobs else None


_SAMPLING = {each.name for each in fields(SamplingOptions)}
_OWN = {each.name for each in fields(ChatRequest) if each.default is not MISSING or each.default_factory is not MISSING}


def as_handler(answer: Callable[[ChatRequest], Any], name: str, without: tuple[str, ...] = ()) -> Any:
    """Return a chat handler that answers a request.

    Args:
        answer: the function that answers it.
        name: the handler's ``__name__``.
        without: keywords of ChatRequest that the handler does not name in its signature. It ignores them.
    """

    def handler(*, llama: Any, messages: Any, **keywords: Any) -> Any:
        return answer(ChatRequest.of(llama, messages, keywords))

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = answer.__doc__
    handler.__signature__ = _signature(without)  # type: ignore[attr-defined]  # inspect.signature() and help() read it
    return handler


def _signature(without: tuple[str, ...]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    known = [each for each in (*fields(ChatRequest), *fields(SamplingOptions)) if each.name not in without]
    parameters = [inspect.Parameter(name, keyword) for name in ("llama", "messages")]
    for each in known:
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is not MISSING:
            parameters.append(inspect.Parameter(each.name, keyword, default=default, annotation=each.type))
    return inspect.Signature([*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])


def json_grammar() -> LlamaGrammar:
    """Return the grammar of any JSON object."""
    return LlamaGrammar.from_string(JSON_GBNF)


def grammar_of_schema(schema: object, *, verbose: bool) -> LlamaGrammar:
    """Return the grammar of JSON that is valid under a schema; where none can be made, that of any JSON object."""
    try:
        return LlamaGrammar.from_json_schema(json.dumps(schema), verbose=verbose)
    except (GrammarError, TypeError, ValueError) as error:
        _logger.warning("a JSON Schema is not used, so that any JSON object may come: %s", error)
        return json_grammar()

"""RequestedFunctions: the functions of a request to a functionary model, and which of them it must call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chat_request import ChatRequest, json_grammar
from .llama_grammar import LlamaGrammar

__all__ = ["SYSTEM_MESSAGE", "RequestedFunctions"]

SYSTEM_MESSAGE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. The assistant calls functions with appropriate input when necessary"
)
"""The system's message that functionary models were trained with."""

Function = Mapping[str, Any]


@dataclass(frozen=True)
class RequestedFunctions:
    """The functions of a request, by whichever names they came.

    Attributes:
        request: where they came from.
        known: the functions; None where the request has no list of them.
        forced: the one that the answer must call, None if the model may choose.
        are_off: whether the request says that none may be called.
    """

    request: ChatRequest
    known: list[Function] | None
    forced: Function | None = None
    are_off: bool = False

    @classmethod
    def of(cls, request: ChatRequest) -> RequestedFunctions:
        """Read ``tools`` or else ``functions``, and ``tool_choice`` or else ``function_call``.

        Raises ValueError, which names the argument, for a function without a name, and for a choice that is not one of the
        functions, "auto" or "none". Without functions the choice has no effect.
        """
        known = _known(request)
        is_tool = request.tool_choice is not None
        choice = request.tool_choice if is_tool else request.function_call
        if choice == "none":
            return cls(request, known, are_off=True)
        if not known or choice in (None, "auto"):
            return cls(request, known)
        return cls(request, known, _forced(choice, "tool_choice" if is_tool else "function_call", known))

    @property
    def may_be_called(self) -> bool:
        """Whether the answer may call a function."""
        return bool(self.known) and not self.are_off

    def grammar_of(self, name: str) -> LlamaGrammar:
        """Return the grammar of a function's arguments: of any JSON object where the model made up the name."""
        for function in self.known or ():
            if function["name"] == name:
                return self.request.grammar_of_tool({"function": function})
        return json_grammar()


def _forced(choice: Any, argument: str, known: list[Function]) -> Function:
    """Return the function that a choice names. A ``tool_choice`` has the name one level deeper than a ``function_call``."""
    named = choice.get("function") if argument == "tool_choice" and isinstance(choice, Mapping) else choice
    name = named.get("name") if isinstance(named, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f'{argument} must be "auto", "none" or name a function, not {choice!r}')
    for function in known:
        if function["name"] == name:
            return function
    raise ValueError(f"{argument}: {name!r} is not one of the functions")


def _known(request: ChatRequest) -> list[Function] | None:
    if request.tools is not None:
        return [
            _checked(tool.get("function"), f"tools[{at}].function")
            for at, tool in enumerate(request.tools)
            if tool.get("type", "function") == "function"
        ]
    if request.functions is not None:
        return [_checked(function, f"functions[{at}]") for at, function in enumerate(request.functions)]
    return None


def _checked(function: Any, place: str) -> Function:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} must be an object with a name, not {function!r}")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise ValueError(f"{place}.parameters must be a JSON Schema, not {function['parameters']!r}")
    return function

"""Tool and ToolCall: functions that a model may call, from JSON Schema or from typed Python functions, and the calls."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offgrid_llama.errors import GrammarError, ToolError
from offgrid_llama.json_schema import read_schema

__all__ = ["MAX_TOOLS", "Tool", "ToolCall", "choose_tools", "read_tools"]

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: of letters, digits, ``_``, ``.`` and ``-``; 64 at most.
        description: what it does, for the model.
        parameters: the JSON Schema of an object.
        function: what ``ToolCall.run`` calls; None where that is up to the caller.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Return the tool that a Python function is: its name, the first paragraph of its docstring, its typed parameters.

        Raises TypeError for parameters without a type, for ``*args`` and the like, and for types without a JSON Schema;
        ToolError without pydantic, which makes the schema.
        """
        name = getattr(function, "__name__", type(function).__name__)
        try:
            from pydantic import TypeAdapter, create_model
            from pydantic.errors import PydanticUserError
        except ImportError as error:
            raise ToolError(
                f"{name}: a function as a tool takes pydantic: pip install 'offgrid-llama[chat]'"
            ) from error
        fields: dict[str, Any] = {}
        hints = inspect.get_annotations(function, eval_str=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{name}: {parameter} cannot be a parameter of a tool")
            if parameter.name not in hints:
                raise TypeError(f"{name}: the parameter {parameter.name} has no type")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        try:
            schema = TypeAdapter(create_model(name, **fields)).json_schema()
        except (PydanticUserError, NameError) as error:
            raise TypeError(f"{name}: {str(error).partition(chr(10))[0]}") from error
        schema.pop("title", None)
        description = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        return cls(name, description, schema, function)

    def as_dict(self) -> dict[str, Any]:
        """Return it in the shape of OpenAI, as templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}


@dataclass
class ToolCall:
    """A call that a model has written.

    Attributes:
        id: what its result is to be answered with.
        name: of the tool.
        arguments: JSON text of an object, as far as it has come.
    """

    id: str
    name: str
    arguments: str = ""

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError where they are not whole, as ``max_tokens`` were reached."""
        found = json.loads(self.arguments)
        if not isinstance(found, dict):
            raise ValueError(f"the arguments of {self.name} are no object: {self.arguments}")
        return found

    def run(self, tools: Sequence[Tool]) -> Any:
        """Call the function of the tool that is meant, with arguments of the types that it asks for, and return its result.

        Raises ToolError where no tool of this name has a function; ValueError for arguments that do not fit it; and what the
        function raises.
        """
        function = next((tool.function for tool in tools if tool.name == self.name), None)
        if function is None:
            raise ToolError(f"there is no function {self.name}")
        from pydantic import TypeAdapter, ValidationError

        types = inspect.get_annotations(function, eval_str=True)
        parsed = self.parsed
        if unknown := sorted(set(parsed) - set(inspect.signature(function).parameters)):
            raise ValueError(f"{self.name} has no parameter {unknown[0]}")
        typed = {}
        for name, value in parsed.items():
            try:
                typed[name] = TypeAdapter(types[name]).validate_python(value)
            except ValidationError as error:
                told = "; ".join(each["msg"] for each in error.errors())
                raise ValueError(f"{self.name}, {name}: {told}") from error
        return function(**typed)

    def as_dict(self) -> dict[str, Any]:
        """Return it in the shape of OpenAI, as it belongs into a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def read_tools(tools: object) -> list[Tool]:
    """Return the tools that are meant by Tools, Python functions and OpenAI's dicts.

    Raises TypeError, ValueError and GrammarError that name the place.
    """
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise TypeError(f"tools must be a list, not {type(tools).__name__}")
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools has {len(tools)} entries; the limit is {MAX_TOOLS}")
    found = [_read(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    names = [tool.name for tool in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tools has {twice!r} more than once")
    return found


def _read(tool: object, where: str) -> Tool:
    if isinstance(tool, Tool):
        return _checked(tool, where)
    if isinstance(tool, Mapping):
        described = tool.get("function")
        if tool.get("type") != "function" or not isinstance(described, Mapping):
            raise ValueError(f"{where} must be {{'type': 'function', 'function': {{...}}}}")
        parameters = described.get("parameters")
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, Mapping):
            raise TypeError(f"{where}: parameters must be a JSON Schema, not {type(parameters).__name__}")
        name: Any = described.get("name")
        description = str(described.get("description") or "")
        return _checked(Tool(name, description, {"type": "object", "properties": {}, **parameters}), where)
    if callable(tool):
        return _checked(Tool.of(tool), where)
    raise TypeError(f"{where} must be a dict, a function or a Tool, not {type(tool).__name__}")


def _checked(tool: Tool, where: str) -> Tool:
    name: object = tool.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{where}: name must be 1 to 64 letters, digits, '_', '.' or '-', not {name!r}")
    if tool.parameters.get("type", "object") != "object":
        raise ValueError(f"{where}: parameters must be the JSON Schema of an object")
    try:
        read_schema(tool.parameters)
    except GrammarError as error:
        raise GrammarError(f"{where}, parameters of {tool.name}: {error}") from error
    return tool


def choose_tools(tools: Sequence[Tool], choice: object) -> tuple[list[Tool], bool]:
    """Return the tools that may be called under a ``tool_choice``, and whether one must be.

    Args:
        tools: all that there are.
        choice: "none", "auto", "required", the name of one, or ``{"type": "function", "function": {"name": ...}}``.

    Raises ValueError for a choice that is none.
    """
    if isinstance(choice, Mapping):
        described = choice.get("function")
        choice = described.get("name") if isinstance(described, Mapping) else choice
    if choice in (None, "auto"):
        return list(tools), False
    if choice == "none":
        return [], False
    if choice == "required" and tools:
        return list(tools), True
    chosen = [tool for tool in tools if tool.name == choice]
    if not chosen:
        known = ", ".join(repr(tool.name) for tool in tools) or "there is none"
        raise ValueError(
            f"tool_choice must be 'none', 'auto', 'required' or one of the tools ({known}), not {choice!r}"
        )
    return chosen, True

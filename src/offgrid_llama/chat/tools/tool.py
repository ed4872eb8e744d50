"""Tool and ToolCall: functions that a model may call, from JSON Schema or from typed Python functions, and the calls."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

from offgrid_llama.errors import GrammarError, ToolError
from offgrid_llama.sampling.grammar.json_schema import LooseSchema, read_loosely
from offgrid_llama.sampling.grammar.json_shapes import Shapes, property_schema
from offgrid_llama.sampling.grammar.schema_check import CheckTime, SchemaCheck
from offgrid_llama.sampling.grammar.type_schema import schema_of_type
from offgrid_llama.text.json_text import plain_value, whole_escapes

from .plain_schema import plain_schema
from .tool_function import is_generator, name_and_doc, types_of_parameters

__all__ = ["MAX_TOOLS", "Tool", "ToolCall", "choose_tools", "read_tools"]

_LOG = logging.getLogger("offgrid_llama.chat")

MAX_TOOLS = 512
"""The tools of one request. An agent with several servers of tools has some hundred; OpenAI's API allows 128."""
MAX_SCHEMA_DEPTH = 300
"""Levels of lists and objects in a schema. Rules that lie deeper than 64 are not held."""
KEPT_MAX_CHARACTERS = 16 * 1024
"""Schemas up to this length are kept for further requests, 256 of them. A longer one is read each time."""
_OF_PROPERTIES = frozenset(
    ["properties", "additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf", "allOf"]
)
"""The keywords of a schema that may speak of properties."""
_ELSEWHERE = ("anyOf", "oneOf", "allOf", "$ref")
"""The keywords of a schema that may speak of properties in another one."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""The name of a tool."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: up to 128 letters, digits, ``_``, ``.`` and ``-``.
        description: what it does, for the model.
        parameters: the JSON Schema of its arguments, which are an object.
        function: the function that ``ToolCall.run`` calls; None where the caller carries out calls.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Return a Python function as a tool: its name, the first paragraph of its docstring, its typed parameters.

        Raises TypeError for a generator, parameters without a type, ``*args`` and the like, and types without a JSON Schema;
        ToolError where pydantic is missing, which makes the schema.
        """
        name, doc = name_and_doc(function)
        if is_generator(function):
            raise TypeError(f"{name} is a generator: a tool returns its result, a list for example")
        try:
            from pydantic import TypeAdapter, create_model
            from pydantic.errors import PydanticUserError
        except ImportError as error:
            raise ToolError(
                f"{name}: a function as a tool takes pydantic: pip install 'offgrid-llama[chat]'"
            ) from error
        fields: dict[str, Any] = {}
        schema: dict[str, Any] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{name}: {parameter} cannot be a parameter of a tool")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"{name}: the parameter {parameter.name} has no type")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
        try:
            model = create_model(name, **fields)
            with suppress(GrammarError):  # such as for a type of which no grammar can hold all
                schema = schema_of_type(model)
            schema = schema or TypeAdapter(model).json_schema()
        except (PydanticUserError, NameError) as error:
            raise TypeError(f"{name}: {str(error).partition(chr(10))[0]}") from error
        schema.pop("title", None)
        description = inspect.cleandoc(doc).partition("\n\n")[0].replace("\n", " ")
        return cls(name, description, schema, function)

    @cached_property
    def schema(self) -> LooseSchema:
        """The rules of ``parameters`` that calls are held to, and those that no grammar can hold."""
        return _read_parameters(json.dumps(self.parameters), self.name)

    @cached_property
    def _shapes(self) -> Shapes:
        return Shapes(self.schema.document)

    def fits(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether arguments are valid under the schema, as far as it is held."""
        return self._shapes.fits(arguments, self.schema.document)

    @property
    def is_checked(self) -> bool:
        """Whether calls are checked when they are complete, because the schema has rules that no grammar can hold."""
        return self.schema.whole is not None

    @cached_property
    def _check(self) -> SchemaCheck:
        return SchemaCheck(self.schema.whole)

    def broken_rule(self, arguments: Mapping[str, Any], allowed: CheckTime | None = None) -> str:
        """Return the first rule of the schema that arguments break, as ``/place/in/them: keyword: how``.

        It is empty where they break none, where the tool is not checked, and where the check cannot be made, or takes more
        than a second of computing: then the log says so. ``allowed`` is the time for this check and others.
        """
        if not self.is_checked:
            return ""
        try:
            return self._check.problem(arguments, allowed)
        except GrammarError as error:
            _LOG.warning("tool %r: a call is not checked: %s", self.name, error)
            return ""

    @cached_property
    def argument_names(self) -> Sequence[str]:
        """The names of the arguments that the schema lists."""
        found = [name for shape in self._shapes.of(self.schema.document) for name in shape.get("properties", ())]
        return list(dict.fromkeys(found))

    def argument_types(self, name: str) -> frozenset[str]:
        """Return the JSON types that an argument may have; an empty set for one that the schema does not allow."""
        found: frozenset[str] = frozenset()
        for shape in self._shapes.of(self.schema.document):
            found |= self._shapes.kinds(property_schema(shape, name))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the tool in the shape of OpenAI's API, as templates take it.

        Many of them look at the properties of the schema only: they get those of its alternatives and references there, too.
        """
        if not self.parameters.get("properties") and any(key in self.parameters for key in _ELSEWHERE):
            with suppress(GrammarError):
                return self._described({**self.parameters, "properties": self._plain["properties"]})
        return self._described(self.parameters)

    def as_plain_dict(self) -> dict[str, Any]:
        """Return the same with a schema that any template can read. Raises GrammarError where that would be too large."""
        return self._described(self._plain)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return plain_schema(self._shapes, self.schema.document, self.parameters)

    def _described(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        described = {"name": self.name, "description": self.description, "parameters": dict(parameters)}
        return {"type": "function", "function": described}


@dataclass
class ToolCall:
    """A call that a model has written.

    Attributes:
        id: the id that goes with its result.
        name: of the tool.
        arguments: JSON text of an object, as far as it has arrived.
    """

    id: str
    name: str
    arguments: str = ""

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError where they are cut off, for example at ``max_tokens``."""
        try:
            found = json.loads(whole_escapes(self.arguments))
        except RecursionError as error:
            raise ValueError(f"the arguments of {self.name} are nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError(f"the arguments of {self.name} are no object: {self.arguments}")
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are an object, and not cut off."""
        with suppress(ValueError):
            return self.parsed is not None
        return False

    def run(self, tools: Sequence[Tool]) -> Any:
        """Call the function of the tool with this name, and return its result.

        The arguments are converted to the types of the function's parameters.

        Raises ToolError where no tool of this name has a function; ValueError for arguments that do not fit the parameters,
        or break a rule of the tool's schema; and the errors of the function itself.
        """
        return self.prepared(tools)()

    def prepared(self, tools: Sequence[Tool]) -> Callable[[], Any]:
        """Return what ``run`` calls: the function, with its arguments checked and converted. Raises as that does."""
        tool = next((tool for tool in tools if tool.name == self.name), None)
        if tool is None or tool.function is None:
            raise ToolError(f"there is no function {self.name}")
        from pydantic import TypeAdapter, ValidationError

        types, takes_any = types_of_parameters(tool.function)
        parsed = self.parsed
        if not takes_any and (unknown := sorted(set(parsed) - set(types))):
            raise ValueError(f"{self.name} has no parameter {unknown[0]}")
        if broken := tool.broken_rule(parsed):
            raise ValueError(f"the arguments of {self.name} break a rule of its schema, at {broken}")
        typed = {}
        for name, value in parsed.items():
            try:
                typed[name] = TypeAdapter(types.get(name, Any)).validate_python(value)
            except ValidationError as error:
                told = "; ".join(each["msg"] for each in error.errors())
                raise ValueError(f"{self.name}, {name}: {told}") from error
        return partial(tool.function, **typed)

    def as_dict(self) -> dict[str, Any]:
        """Return the call in the shape of OpenAI's API, as a message has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def read_tools(tools: object) -> list[Tool]:
    """Return the tools of a list of Tools, Python functions and OpenAI's dicts.

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
        return _checked(Tool(name, description, _of_an_object(parameters)), where)
    if callable(tool):
        return _checked(Tool.of(tool), where)
    raise TypeError(f"{where} must be a dict, a function or a Tool, not {type(tool).__name__}")


def _of_an_object(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema as that of an object, which has no properties where it mentions none."""
    says_more = parameters.keys() & {
        "properties",
        "additionalProperties",
        "patternProperties",
        "$ref",
        "anyOf",
        "oneOf",
        "allOf",
    }
    return {"type": "object", **({} if says_more else {"properties": {}}), **parameters}


def _checked(tool: Tool, where: str) -> Tool:
    name: object = tool.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{where}: name must be 1 to 128 letters, digits, '_', '.' or '-', not {name!r}")
    try:
        parameters = plain_value(tool.parameters, MAX_SCHEMA_DEPTH)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: parameters: {error}") from None
    return tool if parameters == tool.parameters else replace(tool, parameters=parameters)


def _read_parameters(text: str, name: str) -> LooseSchema:
    """Return the schema of a tool's arguments, given as JSON; log the rules that calls are not held to."""
    read = _read_and_keep if len(text) <= KEPT_MAX_CHARACTERS else _read_schema
    return read(text, name)


@lru_cache(maxsize=256)
def _read_and_keep(text: str, name: str) -> LooseSchema:
    return _read_schema(text, name)


def _read_schema(text: str, name: str) -> LooseSchema:
    found = read_loosely(text, kind="object")
    if found.left_out:
        _LOG.warning("tool %r: calls are not held to all of its schema: %s", name, "; ".join(found.left_out))
    return found


def choose_tools(tools: Sequence[Tool], choice: object) -> tuple[list[Tool], bool]:
    """Return the tools that may be called under a ``tool_choice``, and whether the model must call one.

    Args:
        tools: all tools of the request.
        choice: "none", "auto", "required", the name of one, or ``{"type": "function", "function": {"name": ...}}``.

    Raises ValueError for any other choice.
    """
    name = _chosen_name(choice)
    if name in (None, "auto"):
        return list(tools), False
    if name == "none":
        return [], False
    if name == "required" and tools:
        return list(tools), True
    chosen = [tool for tool in tools if tool.name == name]
    if not chosen:
        known = ", ".join(repr(tool.name) for tool in tools) or "there is none"
        raise ValueError(f"tool_choice must be 'none', 'auto', 'required' or one of the tools ({known}), not {name!r}")
    return chosen, True


def _chosen_name(choice: object) -> object:
    """Return the name in OpenAI's dict, and any other choice as it is."""
    described = choice.get("function") if isinstance(choice, Mapping) else None
    return described.get("name") if isinstance(described, Mapping) else choice

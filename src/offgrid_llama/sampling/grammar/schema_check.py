"""SchemaCheck: whether a value is valid under all rules of a JSON Schema, also those that no grammar can hold.

The library jsonschema checks; nothing that a schema or a value says makes it take long, or reach for the network:

- It gets the schema as ``read_whole`` gives it, and knows no other document.
- Each keyword reads the clock of its thread, so that schemas whose parts multiply end in time. A single keyword is bounded
  by the sizes of schema and value, as patterns go to llguidance, and equal items are found by their keys.
- Messages of errors are cut, because they repeat the value.

A rule that cannot be checked is taken for kept, and so is a rule such as ``not`` with one in it that may have to be broken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, lru_cache
from typing import Any

from offgrid_llama.errors import GrammarError

from .json_shapes import is_multiple, json_key
from .patterns import find, matching, pattern_problem
from .whole_schema import NOTHING, UNKNOWN, read_whole

__all__ = ["CheckTime", "SchemaCheck"]

MAX_SECONDS = 1.0
"""The processor time that checks of one answer take."""
MAX_ERRORS = 20_000
"""Errors of one check, those of alternatives included: they are kept in memory until all alternatives are tried."""
MAX_MESSAGE = 200
"""Characters of an error's message."""
MAX_PATTERN_TEXT = 10_000
"""Characters of a text that is compared with a pattern."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[Any]]
"""A function of jsonschema: takes its validator, the keyword's value, the instance and the schema; yields errors."""


class CheckTime:
    """The processor time that is left for checks.

    Args:
        seconds: for all of them together.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._left = seconds

    @contextmanager
    def taken(self) -> Iterator[float]:
        """Give the time, on the clock of this thread, at which a check must have ended; take what it has taken."""
        begin = time.thread_time()
        try:
            yield begin + self._left
        finally:
            self._left -= time.thread_time() - begin


class SchemaCheck:
    """Checks values against one schema.

    Args:
        schema: the schema as plain JSON.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    @cached_property
    def _validator(self) -> Any:
        try:
            from referencing import Registry

            validator = _validator_class()
        except ImportError as error:
            raise GrammarError("it takes jsonschema: pip install 'offgrid-llama[chat]'") from error
        return validator(read_whole(self._schema), registry=Registry())

    def problem(self, value: Any, allowed: CheckTime | None = None) -> str:
        """Return the first rule that a value breaks, as ``/place/in/it: keyword: how``; empty where none is found.

        Args:
            value: of JSON.
            allowed: the time for this check and others; None is a second for this one.

        Raises GrammarError where the check takes too long, or jsonschema cannot use the schema.
        """
        with (allowed or CheckTime()).taken() as deadline:
            try:
                error = self._first_error(value, deadline)
            except GrammarError:
                raise
            except Exception as problem:  # the schema of a third party may make the library raise anything
                raise GrammarError(f"{type(problem).__name__}: {str(problem)[:MAX_MESSAGE]}") from problem
        return "" if error is None else _told(error)

    def _first_error(self, value: Any, deadline: float) -> Any:
        token = _running.set(_Running(self._validator.schema["$defs"], deadline))
        try:
            return next(self._validator.iter_errors(value), None)
        finally:
            _running.reset(token)


class _Running:
    """A check under way.

    Attributes:
        definitions: the schemas that references lead to.
        n_unknown: how many rules could not be checked so far.
    """

    def __init__(self, definitions: Mapping[str, Any], deadline: float) -> None:
        self.definitions = definitions
        self.n_unknown = 0
        self._deadline = deadline
        self._n_errors = 0

    def tick(self) -> None:
        """Raise GrammarError where the time is over."""
        if time.thread_time() > self._deadline:
            raise GrammarError(f"checks take more than {MAX_SECONDS:g} s")

    def count(self, error: Any) -> None:
        """Take an error."""
        error.message = error.message[: MAX_MESSAGE + 1]
        self._n_errors += 1
        if self._n_errors > MAX_ERRORS:
            raise GrammarError(f"a check has more than {MAX_ERRORS:,} errors")


_running: ContextVar[_Running] = ContextVar("offgrid_llama.sampling.grammar.schema_check")
"""jsonschema passes nothing of its caller to its keywords."""


def _told(error: Any) -> str:
    place = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in error.absolute_path)
    message = error.message
    if len(message) > MAX_MESSAGE:  # it repeats a long value
        message = f"is broken: {json.dumps(error.validator_value)[:MAX_MESSAGE]}"
    return ": ".join(each for each in (place[:MAX_MESSAGE] or "/", error.validator, message) if each)


# Keywords -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator, validators

    extend: Callable[..., Any] = validators.extend
    keywords: dict[str, Any] = {**Draft202012Validator.VALIDATORS, **_OWN}
    keywords.update({name: _if_all_is_known(keywords[name]) for name in _NEGATING})
    return extend(Draft202012Validator, {name: _bounded(each) for name, each in keywords.items()})


_NEGATING = ("not", "if", "oneOf", "contains", "unevaluatedItems", "unevaluatedProperties")
"""Keywords that may be broken because a schema in them is not."""


def _bounded(keyword: Keyword) -> Keyword:
    """Return a keyword that ends in time."""

    def check(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[Any]:
        running = _running.get()
        running.tick()
        for error in keyword(validator, rule, value, schema):
            running.count(error)
            yield error

    return check


def _if_all_is_known(keyword: Keyword) -> Keyword:
    """Return a keyword that is never broken where a rule in it could not be checked."""

    def check(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[Any]:
        running = _running.get()
        before = running.n_unknown
        errors = list(keyword(validator, rule, value, schema))
        yield from errors if running.n_unknown == before else ()

    return check


def _error(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)


def _unknown(*_: Any) -> Iterator[Any]:
    _running.get().n_unknown += 1
    yield from ()


def _nothing(*_: Any) -> Iterator[Any]:
    yield _error("no value is allowed here")


def _is_found(pattern: str, text: str) -> bool | None:
    """Return whether a text has a match of a pattern in it; None where that cannot be told, which is noted."""
    running = _running.get()
    running.tick()
    usable = len(text) <= MAX_PATTERN_TEXT and matching(pattern) is not None and not pattern_problem(pattern)
    found = find(pattern, text) if usable else None
    running.n_unknown += found is None
    return found


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    if isinstance(value, str) and _is_found(pattern, value) is False:
        yield _error(f"{value[:MAX_MESSAGE]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], value: Any, _: Any) -> Iterator[Any]:
    for name in value if isinstance(value, dict) else ():
        for pattern, schema in patterns.items():
            if _is_found(pattern, name):
                yield from validator.descend(value[name], schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rest: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    for name in value if isinstance(value, dict) else ():
        if name in schema.get("properties", ()) or any(
            _is_found(pattern, name) is not False for pattern in schema.get("patternProperties", ())
        ):
            continue
        if rest == NOTHING:
            yield _error(f"the property {name[:MAX_MESSAGE]!r} is not allowed")
        else:
            yield from validator.descend(value[name], rest, path=name)


def _multiple_of(_: Any, of: float, value: Any, __: Any) -> Iterator[Any]:
    # The library divides floats: 0.3 by 0.1 is not whole.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_multiple(value, of):
        yield _error(f"{value!r} is not a multiple of {of!r}")


def _unique_items(_: Any, rule: bool, value: Any, __: Any) -> Iterator[Any]:
    if rule and isinstance(value, list) and len(set(map(json_key, value))) < len(value):
        yield _error("has items that are equal")


# Properties and items that no other rule looks at ---------------------------------------------------------------------


def _unevaluated_properties(validator: Any, rest: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not isinstance(value, dict):
        return
    own = {key: rule for key, rule in schema.items() if key != "unevaluatedProperties"}
    known = _evaluated(validator, value, own, _evaluated_names)
    for name in [name for name in value if name not in known]:
        if rest == NOTHING:
            yield _error(f"the property {name[:MAX_MESSAGE]!r} is not allowed")
        else:
            yield from validator.descend(value[name], rest, path=name)


def _unevaluated_items(validator: Any, rest: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not isinstance(value, list):
        return
    own = {key: rule for key, rule in schema.items() if key != "unevaluatedItems"}
    known = _evaluated(validator, value, own, _evaluated_places)
    for at in [at for at in range(len(value)) if at not in known]:
        if rest == NOTHING:
            yield _error(f"the item {at} is not allowed")
        else:
            yield from validator.descend(value[at], rest, path=at)


def _evaluated(
    validator: Any, value: Any, schema: dict[str, Any], own: Callable[[Any, Any, Any], set[Any]]
) -> set[Any]:
    """Return the names or places that a schema, or others for the same value, have a rule for.

    ``own`` returns those of a schema by itself.
    """
    running = _running.get()
    running.tick()
    running.n_unknown += UNKNOWN in schema
    found = own(validator, value, schema)
    for part in _in_place(validator, value, schema):
        found |= _evaluated(validator, value, part, own)
    return found


def _in_place(validator: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas in a schema that the same value is valid under, or must be."""

    def fits(part: Any) -> bool:
        return bool(validator.evolve(schema=part).is_valid(value))

    if "$ref" in schema:
        yield _running.get().definitions[schema["$ref"].removeprefix("#/$defs/")]
    yield from schema.get("allOf", ())
    for key in ("anyOf", "oneOf"):
        yield from filter(fits, schema.get(key, ()))
    if "if" in schema:
        is_valid = fits(schema["if"])
        yield from (schema["if"], schema.get("then", {})) if is_valid else (schema.get("else", {}),)
    if isinstance(value, dict):
        yield from (part for name, part in schema.get("dependentSchemas", {}).items() if name in value)


def _evaluated_names(_: Any, value: dict[str, Any], schema: dict[str, Any]) -> set[Any]:
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return set(value)
    patterns = schema.get("patternProperties", ())
    found = {name for name in value if name in schema.get("properties", ())}
    return found | {name for name in value if any(_is_found(each, name) is not False for each in patterns)}


def _evaluated_places(validator: Any, value: list[Any], schema: dict[str, Any]) -> set[Any]:
    if "items" in schema or "unevaluatedItems" in schema:
        return set(range(len(value)))
    found = set(range(len(schema.get("prefixItems", ()))))
    if "contains" in schema:
        contained = validator.evolve(schema=schema["contains"])
        found |= {at for at, item in enumerate(value) if contained.is_valid(item)}
    return found


_OWN: dict[str, Keyword] = {
    UNKNOWN: _unknown, "false": _nothing, "pattern": _pattern, "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties, "multipleOf": _multiple_of, "uniqueItems": _unique_items,
    "unevaluatedItems": _unevaluated_items, "unevaluatedProperties": _unevaluated_properties,
}  # fmt: skip
"""Keywords that the library has in another way: with Python's ``re``, with floats, or in quadratic time."""

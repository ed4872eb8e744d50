"""The JSON Schema of a Python type, as tight as the type's validation.

pydantic describes some types more loosely than it validates them: a Decimal is any text, a date may be the 31st of June,
the keys of a ``dict[int, str]`` are any texts. An answer could be valid under the schema, and no value of the type. Here
texts of such types have a pattern, which may allow less than the validation does, but never more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from offgrid_llama.errors import GrammarError

__all__ = ["schema_of_type"]

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_YEAR = "(?:[1-9][0-9]{3})"
_DATE = f"(?:{_YEAR}-{_DAY}|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29)"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-f]"
_HOST = "[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?(?:\\.[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?){0,3}\\.[a-z]{2,10}"
_INTEGER = "-?(?:0|[1-9][0-9]{0,17})"
_NUMBER = f"{_INTEGER}(?:\\.[0-9]{{1,17}})?"

_TEXTS = {
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}?",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}?",
    "aware": f"{_DATE}T{_TIME}{_ZONE}",
    "naive": f"{_DATE}T{_TIME}",
    "duration": "-?P(?:[0-9]{1,5}D(?:T[0-9]{1,2}H)?|T(?:[0-9]{1,2}H(?:[0-5]?[0-9]M)?|[0-5]?[0-9]M(?:[0-5]?[0-9]S)?))",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    **{
        f"uuid{version}": f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"
        for version in range(1, 9)
    },
    "email": f"[a-z0-9]{{1,30}}(?:[._+-][a-z0-9]{{1,15}}){{0,3}}@{_HOST}",
    "base64": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?",
    "base64url": "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]==|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]=)?",
    "ipv4network": f"(?:10\\.0\\.0\\.0/8|{_BYTE}\\.{_BYTE}\\.0\\.0/16|{_BYTE}(?:\\.{_BYTE}){{2}}\\.0/24)",
    "ipv4interface": f"{_BYTE}(?:\\.{_BYTE}){{3}}/(?:3[0-2]|[12]?[0-9])",
    "ipv6network": "(?:[1-9a-f][0-9a-f]{3}:){2}:/(?:3[2-9]|[4-9][0-9]|1[01][0-9])",
    "ipv6interface": "(?:[1-9a-f][0-9a-f]{3}:){7}[1-9a-f][0-9a-f]{3}/(?:[1-9]?[0-9]|1[01][0-9])",
    "uri": f"https?://{_HOST}(?::[1-9][0-9]{{1,3}})?(?:/[A-Za-z0-9._~-]{{1,60}}){{0,8}}/?(?:\\?[A-Za-z0-9=&_-]{{0,60}})?",
    "fraction": "-?(?:0|[1-9][0-9]{0,8})(?:/[1-9][0-9]{0,8})?",
    "complex": f"{_NUMBER}[+-](?:0|[1-9][0-9]{{0,8}})(?:\\.[0-9]{{1,8}})?j",
    "decimal": _NUMBER,
}
"""The patterns of texts, by the formats of pydantic, and by our own."""

_FREE = {"binary", "password", "path"}
"""Formats that any text has."""
_CANNOT = {
    "file-path": "a path that must exist", "directory-path": "a folder that must exist", "regex": "a regular expression",
    "json-string": "a text that must be JSON",
}  # fmt: skip
"""Formats that no grammar can hold."""
_BYTE_SIZE = "^\\s*(\\d*\\.?\\d+)\\s*(\\w+)?"
"""The pattern of pydantic's ByteSize, which has no end."""
_MAX_DECIMALS = 4
"""The most decimal places of a number of JSON: ``multipleOf`` may not be smaller."""
_LARGE = 10**15
"""The largest number of JSON for a Decimal without bounds: 1e999 would be infinite."""
_BOUNDED = {"type": "number", "minimum": -_LARGE, "maximum": _LARGE}
_MAX_DIGITS = 40
"""The most digits of a decimal."""


def schema_of_type(kind: Any) -> Any:
    """Return the JSON Schema of a type.

    Raises GrammarError where pydantic is missing, or makes no schema, or the schema's texts could not be held.
    """
    try:
        from pydantic import PydanticSchemaGenerationError, TypeAdapter
        from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
    except ImportError as error:
        raise GrammarError("the schema of a type takes pydantic: pip install 'offgrid-llama[chat]'") from error
    problems = (
        PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
    )  # fmt: skip
    try:
        schema = TypeAdapter(kind).json_schema(schema_generator=_generator())
    except problems as error:
        raise GrammarError(f"{kind!r} has no JSON Schema: {str(error).partition(chr(10))[0]}") from error
    return _tight(schema, schema.get("$defs", {}), "")


@cache
def _generator() -> Any:
    """Return pydantic's writer of schemas, with formats of our own for what it describes too loosely."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> Any:
            return _decimal(schema)

        def complex_schema(self, schema: Any) -> Any:
            return {"type": "string", "format": "complex"}

        def datetime_schema(self, schema: Any) -> Any:
            zone = schema.get("tz_constraint")
            form = "date-time" if zone is None else "naive" if zone == "naive" else "aware"
            return {"type": "string", "format": form, **_now(schema)}

        def date_schema(self, schema: Any) -> Any:
            return {"type": "string", "format": "date", **_now(schema)}

        def str_schema(self, schema: Any) -> Any:
            made = super().str_schema(schema)
            least = schema.get("min_length") or 0
            if schema.get("strip_whitespace") and least and "pattern" not in made:
                return {"type": "string", "pattern": _stripped(least, schema.get("max_length"))}
            return made

        def set_schema(self, schema: Any) -> Any:
            return _without_unique(super().set_schema(schema))

        def frozenset_schema(self, schema: Any) -> Any:
            return _without_unique(super().frozenset_schema(schema))

        def dict_schema(self, schema: Any) -> Any:
            made = super().dict_schema(schema)
            keys = schema.get("keys_schema")
            if keys is not None and "propertyNames" not in made and "patternProperties" not in made:
                made["propertyNames"] = self.generate_inner(keys)
            return made

    return Generator


def _decimal(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a Decimal: a number where it has bounds, or else a text, too, which keeps all digits."""
    bounds = {"le": "maximum", "ge": "minimum", "lt": "exclusiveMaximum", "gt": "exclusiveMinimum"}
    found = {word: float(schema[name]) for name, word in bounds.items() if schema.get(name) is not None}
    digits, places = schema.get("max_digits"), schema.get("decimal_places")
    counted = digits is not None or (places or 0) > _MAX_DECIMALS
    if counted and found in ({}, {"minimum": 0.0}):
        return {"type": "string", "pattern": _digits(digits, places, "" if found else "-?")}
    number = _number(found, digits, places)
    return number if found or places is not None else {"anyOf": [number, {"type": "string", "format": "decimal"}]}


def _number(bounds: Mapping[str, float], digits: int | None, places: int | None) -> dict[str, Any]:
    """Return the schema of a number of JSON with these bounds, and with this many digits and decimal places at most."""
    decimals = min(places or 0, _MAX_DECIMALS)
    most = _LARGE if digits is None else 10 ** (digits - decimals) - 1
    number: dict[str, Any] = {"type": "number", "minimum": -most, "maximum": most}
    for word, exclusive, closer in (("minimum", "exclusiveMinimum", max), ("maximum", "exclusiveMaximum", min)):
        if word in bounds:
            number[word] = closer(number[word], bounds[word])
        elif exclusive in bounds:
            del number[word]
            number[exclusive] = closer(bounds[exclusive], -most if closer is max else most)
    if digits is not None or places is not None:
        number["multipleOf"] = 10.0**-decimals
    return number


def _digits(digits: int | None, places: int | None, sign: str) -> str:
    """Return the pattern of a decimal with this many digits and places at most."""
    most = min(digits or _MAX_DIGITS, _MAX_DIGITS)
    behind = min(most - 1 if places is None else places, most - 1)
    whole = [f"[1-9][0-9]{{0,{most - behind - 1}}}", "0"]
    fraction = f"(?:\\.[0-9]{{1,{behind}}})?" if behind else ""
    return f"^{sign}(?:{'|'.join(whole)}){fraction}$"


def _now(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the year of a date that must be in the past or in the future, as a note for ``_tight``."""
    when = schema.get("now_op")
    return {} if when is None else {"x-years": "19[0-9]{2}" if when == "past" else "2[1-9][0-9]{2}"}


def _stripped(least: int, most: int | None) -> str:
    """Return the pattern of a text of this length without white space at its ends."""
    if most == 1:
        return "^\\S$"
    end = "" if most is None else str(most - 2)
    inner = f"\\S[^\\r\\n]{{{max(least - 2, 0)},{end}}}\\S"
    return f"^(?:{inner}|\\S)$" if least == 1 else f"^{inner}$"


def _without_unique(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a set, which may be given elements twice, unless it needs a number of them."""
    if schema.get("minItems", 0) <= 1:
        schema.pop("uniqueItems", None)
    return schema


# The walk ---------------------------------------------------------------------------------------------------------------


def _tight(schema: Any, defs: Mapping[str, Any], place: str) -> Any:
    """Return a schema with patterns in place of formats and of the names of properties."""
    if isinstance(schema, list):
        return [_tight(each, defs, f"{place}/{at}") for at, each in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    if {"type": "string", "format": "fraction"} in schema.get("anyOf", ()):
        return {"anyOf": [_BOUNDED, _tight_text({"type": "string", "format": "fraction"}, place)]}
    if schema.get("type") == "string":
        return _tight_text(dict(schema), place)
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            made[key] = {name: _tight(each, defs, f"{place}/{key}/{name}") for name, each in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            made[key] = value
        else:
            made[key] = _tight(value, defs, f"{place}/{key}")
    names = made.pop("propertyNames", None)
    if names is None or (pattern := _pattern_of(names, made.get("$defs", defs))) is None:
        return made
    made["patternProperties"] = {f"^(?:{pattern})$": made.get("additionalProperties", True)}
    made["additionalProperties"] = False
    return made


def _tight_text(schema: dict[str, Any], place: str) -> dict[str, Any]:
    form, years = schema.get("format"), schema.pop("x-years", None)
    if schema.get("contentMediaType") == "application/json":
        form = "json-string"
    if form in _CANNOT:
        raise GrammarError(f"schema, at {place or '/'}: {_CANNOT[form]} cannot be held by a grammar")
    if form in _FREE:
        del schema["format"]
    elif form in _TEXTS and "pattern" not in schema:
        del schema["format"]
        if form == "uri":
            schema.pop("minLength", None)
            schema.pop("maxLength", None)
        pattern = _TEXTS[form]
        schema["pattern"] = f"^(?:{pattern if years is None else pattern.replace(_DATE, f'{years}-{_DAY}')})$"
    if schema.get("pattern") == _BYTE_SIZE:
        schema["pattern"] = "^[0-9]{1,9} ?(?:[KMGT]i?)?B$"
    return schema


def _pattern_of(names: Mapping[str, Any], defs: Mapping[str, Any]) -> str | None:
    """Return the pattern of the names of properties; None is any text."""
    while "$ref" in names:
        names = _tight(defs[names["$ref"].rpartition("/")[2]], defs, "")
    if "anyOf" in names:
        patterns = [_pattern_of(each, defs) for each in names["anyOf"]]
        return None if None in patterns else "|".join(filter(None, patterns))
    if "const" in names or "enum" in names:
        values: Iterable[Any] = names.get("enum", [names.get("const")])
        return "|".join(re.escape(value if isinstance(value, str) else json.dumps(value)) for value in values)
    return _pattern_of_kind(names)


def _pattern_of_kind(names: Mapping[str, Any]) -> str | None:
    """Return the pattern of names of one kind: a format, a pattern, a type, or a length."""
    if names.get("format") in _TEXTS:
        return _TEXTS[names["format"]]
    if "pattern" in names:
        return str(names["pattern"]).removeprefix("^").removesuffix("$")
    numbers = {"integer": _INTEGER, "number": _NUMBER, "boolean": "true|false"}
    if names.get("type") in numbers:
        return numbers[names["type"]]
    least, most = names.get("minLength", 0), names.get("maxLength")
    return f'[^\\x00-\\x1f"\\\\]{{{least},{"" if most is None else most}}}' if least or most is not None else None

"""The shape of an answer, as a caller gives it."""

from __future__ import annotations

from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.chat.response_format import grammar_of, parse_as


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("json", TypeError, r"response_format must be a type, a Grammar or a dict such as .*, not str"),
        (5, TypeError, "not int"), ([int], TypeError, "not list"),
        ({"type": "json"}, ValueError, r"'json_schema' or 'structural_tag', not 'json'$"),
        ({"type": "object", "properties": {}}, ValueError, r"not 'object'; a JSON Schema is given as Grammar.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, ValueError, "must be a dict with a 'schema'"),
        ({"type": "json_object", "json_schema": {"schema": {}}}, ValueError, r"\['json_schema'\] has no effect"),
        ({"type": "text", "schema": {}}, ValueError, r"has no effect with the type 'text'; it is for 'json_object'"),
        ({"type": "json_schema", "json_schema": {"schema": {}}, "schema": {}}, ValueError, r"\['schema'\] has no effect"),
    ],
)  # fmt: skip
def test_what_it_cannot_be(given: Any, error: type[Exception], says: str) -> None:
    """Anything else is refused, with what it may be."""
    with pytest.raises(error, match=says):
        grammar_of(given)


@pytest.mark.parametrize("given", [int, list[int], int | None, {"type": "json_object"}, og.Grammar.regex("a")])
def test_what_it_can_be(given: Any) -> None:
    """A type, generic or not, a dict or a Grammar."""
    assert isinstance(grammar_of(given), og.Grammar)


@pytest.mark.parametrize("given", [{"type": "json_object"}, og.Grammar.json_schema({}), dict[str, Any]])
def test_answers_that_not_every_parser_reads(given: Any) -> None:
    """Half of a character becomes U+FFFD, and an answer that is nested too deeply is a ValueError, too."""
    assert parse_as(given, r'{"a": "\ud83d!"}') == {"a": "\ufffd!"}
    with pytest.raises(ValueError, match=r".+"):
        parse_as(given, '{"a":' * 5000 + "1" + "}" * 5000)

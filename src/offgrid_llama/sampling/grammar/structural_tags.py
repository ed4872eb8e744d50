"""Structural tags: free text with parts between tags, each of which is JSON of a schema, in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from offgrid_llama.errors import GrammarError
from offgrid_llama.native import kinds

from .json_schema import read_schema

__all__ = ["grammars_of_tags"]

MAX_TAGS = 128
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammars_of_tags(
    structures: object, triggers: object, at_least_one: object = False, stop_after_first: object = False
) -> list[dict[str, Any]]:
    """Return the grammars of texts with tags, in llguidance's form.

    Args:
        structures: mappings with "begin" and "end", the texts of a tag, and "schema", of what is between them.
        triggers: texts with one of which each begin begins. Wherever a text has one, a tag follows.
        at_least_one: whether the text begins with a tag, without free text before it.
        stop_after_first: whether the text ends with its first tag.

    Raises GrammarError, TypeError and ValueError that name the place.
    """
    starts = list(kinds.texts("triggers", triggers))  # type: ignore[arg-type]
    given: Any = structures
    found: tuple[object, ...] = kinds.listed("structures", given, "tags")
    if not found or len(found) > MAX_TAGS:
        raise ValueError(f"structures must have 1 to {MAX_TAGS} tags, not {len(found)}")
    begins_with_tag, ends_with_tag = _flag("at_least_one", at_least_one), _flag("stop_after_first", stop_after_first)
    names = [f"tag_{at}" for at in range(len(found))]
    lines = [
        f"start: {_whole(begins_with_tag, ends_with_tag)}", f"tag: {' | '.join(names)}",
        f"first: {' | '.join(f'{name}_alone' for name in names)}", "rest: FREE", r"FREE: /(.|\n)*/",
    ]  # fmt: skip
    grammars: list[dict[str, Any]] = []
    for at, (name, tag) in enumerate(zip(names, found, strict=True)):
        where = f"structures[{at}]"
        begin, end, schema = _parts(tag, where)
        trigger = _trigger(begin, starts, where)
        lines.append(f"{name}_trigger[lazy]: FREE {json.dumps(trigger)}")
        texts = [json.dumps(text) if text else "" for text in (begin[len(trigger) :], end)]
        lines.append(f"{name}: {name}_trigger {texts[0]} @{name}_content {texts[1]}")
        lines.append(f"{name}_alone: {json.dumps(begin)} @{name}_content {texts[1]}")
        grammars.append({"name": f"{name}_content", "json_schema": {**schema, "x-guidance": _OPTIONS}})
    return [{"lark_grammar": "\n".join(lines)}, *grammars]


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def _whole(begins_with_tag: bool, ends_with_tag: bool) -> str:
    """Return the rule of a whole text."""
    if ends_with_tag:
        return "first" if begins_with_tag else "tag | rest"
    return "first tag* rest" if begins_with_tag else "tag* rest"


def _parts(tag: object, where: str) -> tuple[str, str, Mapping[str, Any]]:
    """Return the begin, the end and the schema of a tag."""
    if not isinstance(tag, Mapping):
        raise TypeError(f"{where} must be a mapping, not {type(tag).__name__}")
    begin, end = tag.get("begin"), tag.get("end")
    if not isinstance(begin, str) or not isinstance(end, str):
        raise TypeError(f"{where}: begin and end must be texts")
    try:
        return begin, end, read_schema(tag.get("schema", {}))
    except GrammarError as error:
        raise GrammarError(f"{where}: {error}") from error


def _trigger(begin: str, triggers: Iterable[str], where: str) -> str:
    """Return the trigger with which a tag begins. Raises GrammarError where none, or several do."""
    found = [trigger for trigger in triggers if trigger and begin.startswith(trigger)]
    if len(found) != 1:
        raise GrammarError(
            f"{where}: begin must begin with exactly one of the triggers, not with {len(found)}: {begin!r}"
        )
    return found[0]

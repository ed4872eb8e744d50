"""Answers against the types of an API's official client: nothing missing, nothing of another type, nothing unknown."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter


def check(kind: Any, value: Any, own: Collection[str] = ()) -> None:
    """Fail where JSON is no instance of a client's type, or has names that the type does not.

    Args:
        kind: the type, or a union of types.
        value: the JSON.
        own: names of ours that the type does not have.
    """
    found = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    more = set(_unknown(found, value))
    assert more <= set(own), f"{more} of {value}"


def _unknown(found: Any, value: Any) -> Iterator[str]:
    """Yield the names in JSON that the models made of it do not have; some clients keep such names, others drop them."""
    if isinstance(found, BaseModel):
        fields = {field.alias or name: name for name, field in type(found).model_fields.items()}
        yield from value.keys() - fields.keys()
        for name in value.keys() & fields.keys():
            yield from _unknown(getattr(found, fields[name]), value[name])
    elif isinstance(found, dict):
        for name in found.keys() & value.keys():
            yield from _unknown(found[name], value[name])
    elif isinstance(found, list):
        for one, its_value in zip(found, value, strict=True):
            yield from _unknown(one, its_value)

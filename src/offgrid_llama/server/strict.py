"""Strict: objects of requests whose names are all known, and errors about one of their parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from .synonyms import hint

__all__ = ["Described", "Strict", "refused"]


MAX_FURTHER_NAMES = 32
"""Further names of an object of a third party, at most: each is compared with those that are known, which takes time."""


def refused(param: str, why: str) -> PydanticCustomError:
    """Return the error of a check on several parameters, which is about one of them."""
    return PydanticCustomError("refused", "{why}", {"param": param, "why": why})


class Strict(BaseModel):
    """An object whose names are all known. A name with null is as if it were absent, which is what clients mean by it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    _takes_more: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse the first unknown name; pydantic would make an error for each. One that is null says nothing."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in given if name not in known]
        if not unknown:
            return given
        if not (info.context or {}).get("ignore_unknown"):
            cls._refuse([name for name in unknown if given[name] is not None], known)
        return {name: value for name, value in given.items() if name in known}

    @classmethod
    def _refuse(cls, unknown: Sequence[str], known: Collection[str]) -> None:
        takes_more = cls._takes_more and len(unknown) <= MAX_FURTHER_NAMES
        for name in unknown:
            meant = hint(name, known)
            if meant or not takes_more:
                raise PydanticCustomError("unknown_parameter", "unknown", {"param": name, "hint": meant})


class Described(Strict):
    """An object that a third party describes: what is not known here is left out, unless it may be meant for what is."""

    _takes_more = True

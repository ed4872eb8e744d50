"""Forgiving: objects of requests of which names that are not known are ignored; the log tells of each name once."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from .log import KIND

__all__ = ["Forgiving"]

_logger = logging.getLogger("offgrid_llama.server")

MAX_TOLD = 256
"""Names that the log tells of, at most: clients choose them."""
MAX_NAME_CHARACTERS = 40
_told: set[str] = set()


class Forgiving(BaseModel):
    """An object of which only the known names are read. A null says as much as a name that is absent.

    Attributes:
        place: of such objects in a request, for the log; "" is the request itself.
    """

    place: ClassVar[str] = ""
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keep_known(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in given.keys() - known:
            _tell(f"{cls.place}{'.' if cls.place else ''}{name[:MAX_NAME_CHARACTERS]}")
        return {name: value for name, value in given.items() if name in known and value is not None}


def _tell(name: str) -> None:
    if name not in _told and len(_told) < MAX_TOLD:
        _told.add(name)
        _logger.warning("requests have %r, which is not known here and has no effect", name, extra={KIND: name})

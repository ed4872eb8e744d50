"""Checks that all classes of settings share, and the error of a setting that is not possible."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import msgspec

__all__ = ["MODEL_NAME", "SettingsError", "check_known", "check_loras", "check_name", "checked"]

MODEL_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_T = TypeVar("_T")


class SettingsError(ValueError):
    """A setting that is not possible; the message names it."""


def check_name(name: object, where: str) -> None:
    """Raise SettingsError unless clients can use a name for a model."""
    if not MODEL_NAME.fullmatch(str(name)):
        raise SettingsError(f"{where}: the name {name!r} must have 1 to 128 letters, digits or characters of ._:/-")


def check_loras(loras: Mapping[str, object], where: str) -> None:
    """Raise SettingsError unless the scales of adapters are finite numbers."""
    for path, scale in loras.items():
        if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not math.isfinite(scale):
            raise SettingsError(f"{where}: loras: the scale of {path} must be a number, not {scale!r}")


def check_known(cls: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Raise SettingsError that names settings which a class does not have."""
    unknown = sorted(values.keys() - {each.name for each in dataclasses.fields(cls)})
    if unknown:
        raise SettingsError(f"{where}there is no setting {', '.join(unknown)}")


def checked(cls: type[_T], values: Mapping[str, Any], where: str, **more: Any) -> _T:
    """Return an instance of a class of settings. Its fields must be known and of the declared type.

    A message has no value in it, which may be a key.
    """
    check_known(cls, values, where)
    kinds = get_type_hints(cls)
    for name, value in values.items():
        try:
            msgspec.convert(value, kinds[name])
        except msgspec.ValidationError as error:
            raise SettingsError(f"{where}{name}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    return cls(**values, **more)

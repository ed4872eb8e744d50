"""Arguments of the wrong kind, told by the argument's name and by what it takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["instance", "listed", "mapping", "path_of", "switch", "text_of_argument", "texts"]

_T = TypeVar("_T")


def instance(name: str, value: object, kind: type[_T], hint: str = "") -> _T:
    """Return ``value``, or raise TypeError unless it is a ``kind``; ``hint`` says how to make one."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, not {type(value).__name__}{hint and ': ' + hint}")
    return value


@contextmanager
def text_of_argument(name: str) -> Iterator[None]:
    """Add the name of an argument to the UnicodeError of its text."""
    try:
        yield
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        error.reason = f"{error.reason}, in {name}"
        raise


def listed(name: str, value: Iterable[_T], what: str) -> tuple[_T, ...]:
    """Return the items of ``value``, or raise TypeError unless it can be iterated over; ``what`` are its items."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be several {what}, not {type(value).__name__}")
    return tuple(value)


def mapping(name: str, value: Mapping[Any, _T]) -> Mapping[Any, _T]:
    """Return ``value``, or raise TypeError unless it is a dict or the like."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    return value


def texts(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Return one text or several, or raise TypeError for anything else."""
    found: Any = (value,) if isinstance(value, str) else value
    if isinstance(found, bytes) or not isinstance(found, Iterable):
        raise TypeError(f"{name} must be a str or several, not {type(value).__name__}")
    found = tuple(found)
    for at, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{at}] must be str, not {type(text).__name__}")
    return found  # type: ignore[no-any-return]


def switch(name: str, value: object) -> bool:
    """Return ``value``, or raise TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    return value


def path_of(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path, or raise TypeError for anything that is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return Path(value)

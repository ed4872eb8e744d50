"""Engines and embedders that the models of frameworks share: one for each model, made when it is first needed."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from offgrid_llama.engine.engine import Engine
from offgrid_llama.tasks.embedding import Embedder

__all__ = ["close_all", "shared_embedder", "shared_engine"]

_T = TypeVar("_T", Engine, Embedder)

_shared: dict[tuple[Any, ...], Any] = {}
_lock = threading.RLock()


def shared_engine(model: str | os.PathLike[str], **options: Any) -> Engine:
    """Return this process's Engine for a model with these options; the first caller makes it.

    It is closed at the end of the process, or by ``close_all``. Raises as Engine does.
    """
    return _made(partial(Engine, model, **options), Engine, model, options)


def shared_embedder(model: str | os.PathLike[str], **options: Any) -> Embedder:
    """Return this process's Embedder for a model with these options, as ``shared_engine`` does."""
    from offgrid_llama.model.model import Model

    return _made(lambda: Embedder(Model(model), **options), Embedder, model, options)


def _made(make: Callable[[], _T], kind: type[_T], model: str | os.PathLike[str], options: dict[str, Any]) -> _T:
    key = (os.getpid(), kind, os.fspath(model), repr(sorted(options.items())))
    with _lock:  # a second caller waits for the first one's load
        found = _shared.get(key)
        if found is None or (kind is Engine and found.closed):  # it may have failed
            found = _shared[key] = make()
        return cast("_T", found)


@atexit.register
def close_all() -> None:
    """Close all of them. Those of a process before a fork are left to that."""
    with _lock:
        for key in [key for key in _shared if key[0] == os.getpid()]:
            found = _shared.pop(key)
            found.close()
            if isinstance(found, Embedder):
                found.model.close()

"""Engines, embedders and rerankers that the models of frameworks share: one for each model, made when it is first needed."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from offgrid_llama.engine.engine import Engine
from offgrid_llama.files.architecture import own_pooling
from offgrid_llama.model.model import Model
from offgrid_llama.native.enums import PoolingType
from offgrid_llama.tasks.embedding import Embedder
from offgrid_llama.tasks.reranking import Reranker

__all__ = ["close_all", "shared_embedder", "shared_engine", "shared_reranker"]

_T = TypeVar("_T", Engine, Embedder, Reranker)
_PooledT = TypeVar("_PooledT", Embedder, Reranker)

_shared: dict[tuple[Any, ...], Any] = {}
_lock = threading.RLock()


def shared_engine(model: str | os.PathLike[str], **options: Any) -> Engine:
    """Return this process's Engine for a model with these options; the first caller makes it.

    It is closed at the end of the process, or by ``close_all``. Raises as Engine does.
    """
    return _made(partial(Engine, model, **options), Engine, model, options)


def shared_embedder(model: str | os.PathLike[str], *, n_text: int = 0, **options: Any) -> Embedder:
    """Return this process's Embedder for a model with these options, as ``shared_engine`` does.

    Without a ``pooling_type`` texts are pooled as the model says, or by the mean where it says nothing. Without an
    ``n_batch`` texts may have ``n_text`` tokens, or as many as the model has positions.
    """

    def make(loaded: Model) -> Embedder:
        is_silent = own_pooling(loaded.metadata) is PoolingType.NONE
        pooling = {"pooling_type": PoolingType.MEAN} if is_silent else {}
        return Embedder(loaded, **{**pooling, **_room(loaded, n_text), **options})

    return _made(partial(_loaded, model, make), Embedder, model, {**options, "n_text": n_text})


def shared_reranker(model: str | os.PathLike[str], *, n_text: int = 0, **options: Any) -> Reranker:
    """Return this process's Reranker for a model with these options, as ``shared_embedder`` does."""

    def make(loaded: Model) -> Reranker:
        return Reranker(loaded, **{**_room(loaded, n_text), **options})

    return _made(partial(_loaded, model, make), Reranker, model, {**options, "n_text": n_text})


def _room(model: Model, n_text: int) -> dict[str, int]:
    """Return the size of batches in which texts fit; the usual one where it is room enough, as larger ones take longer."""
    n_text = min(n_text, model.n_ctx_train or n_text, model.traits.n_positions or n_text)
    return {"n_batch": n_text} if n_text > 512 else {}


def _loaded(model: str | os.PathLike[str], make: Callable[[Model], _PooledT]) -> _PooledT:
    """Return what is made of a model that is loaded for it; where that fails the model is closed."""
    loaded = Model(model)
    try:
        return make(loaded)
    except BaseException:
        loaded.close()
        raise


def _made(make: Callable[[], _T], kind: type[_T], model: str | os.PathLike[str], options: dict[str, Any]) -> _T:
    key = (os.getpid(), kind, os.fspath(model), repr(sorted(options.items())))
    with _lock:  # a second caller waits for the first one's load
        found = _shared.get(key)
        if found is None or found.closed:  # it may have failed
            found = _shared[key] = make()
        return cast("_T", found)


@atexit.register
def close_all() -> None:
    """Close all of them. Those of a process before a fork are left to that."""
    with _lock:
        for key in [key for key in _shared if key[0] == os.getpid()]:
            found = _shared.pop(key)
            found.close()
            if not isinstance(found, Engine):
                found.model.close()

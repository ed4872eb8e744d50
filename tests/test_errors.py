"""The exceptions: they come back from pickle, from a copy and from another process as they were."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from helpers.failures import too_long
from offgrid_llama import errors
from offgrid_llama.server.api_error import ApiError, busy
from offgrid_llama.server.supervision.worker_process import WorkerDiedError

LOG = ("a line of llama.cpp", "another")
OTHER_ARGUMENTS: dict[type[BaseException], Callable[[], BaseException]] = {
    errors.NativeError: lambda: errors.NativeError("llama_decode", "vector::at", log=LOG),
    errors.ContextLengthError: lambda: errors.ContextLengthError("too long", n_tokens=9, n_ctx=8),
    errors.QueueFullError: lambda: errors.QueueFullError("full", n_waiting=3),
    ApiError: lambda: busy(503, "full", "queue_full", 2),
    WorkerDiedError: lambda: WorkerDiedError("smollm2"),
}
KINDS = [*(getattr(errors, name) for name in errors.__all__), ApiError, WorkerDiedError]


def pickled(protocol: int, error: Any) -> Any:
    """Return an error that went through pickle."""
    return pickle.loads(pickle.dumps(error, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": partial(pickled, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


def made(kind: type[Any]) -> BaseException:
    """Return an error with all that its kind can carry."""
    if kind in OTHER_ARGUMENTS:
        return OTHER_ARGUMENTS[kind]()
    if issubclass(kind, errors.DecodeError):
        decode_error: BaseException = kind("failed", code=1, memory_restored=True, log=LOG)
        return decode_error
    error: BaseException = kind("failed", log=LOG)
    return error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive(kind: type[Any], way: str) -> None:
    """An error that is pickled or copied keeps its type, its text, its attributes and its notes."""
    error = made(kind)
    error.__dict__["__notes__"] = ["seen in a test"]
    again = WAYS[way](error)
    assert again is not error
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.args == error.args
    assert again.__dict__ == error.__dict__
    assert again.__dict__ is not error.__dict__


class OwnError(errors.ContextLengthError):
    """A caller's own kind, which is made of other things."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__("too long", n_tokens=n_tokens, n_ctx=1)


def test_a_callers_own_error_survives() -> None:
    """A subclass with an ``__init__`` of its own needs no more than that."""
    again = pickle.loads(pickle.dumps(OwnError(7)))
    assert (type(again), again.n_tokens, str(again)) == (OwnError, 7, "too long")


def test_an_error_of_a_pool_reaches_its_parent() -> None:
    """An error in a worker of ``multiprocessing`` is raised in the parent, which would wait for ever otherwise."""
    raised = pytest.raises(errors.ContextLengthError, match="too long")
    with multiprocessing.get_context("spawn").Pool(1) as pool, raised as caught:
        pool.map_async(too_long, [7]).get(timeout=240)
    assert caught.value.n_tokens == 7

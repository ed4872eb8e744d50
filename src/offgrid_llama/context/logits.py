"""Logits: one row of a decode's result, read in llama.cpp's own buffer, until the next decode.

llama.cpp overwrites the buffer in the next decode and frees it with the context. A plain NumPy view would then show numbers
of another step, or read freed memory. So this is a revocable view: it acts as a read-only ``float32[n_vocab]`` array in
NumPy's protocols, and each use checks, under the context's lock, that its step is still the last one. No result shares the
buffer. The module needs NumPy, and is imported with the first ``context.logits(row)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import StaleLogitsError
from offgrid_llama.native.bound import Bound

if TYPE_CHECKING:
    import numpy.typing as npt

    from .outputs import Outputs

__all__ = ["Logits"]


class Logits(Bound, NDArrayOperatorsMixin):
    """A read-only float32 view of ``n_vocab`` logits, valid until the context's next decode.

    Indexing, operators, NumPy functions and ndarray's methods work on it: ``row[7]``, ``row.argmax()``,
    ``np.exp(row - row.max())``. Slices and ``np.asarray(row)`` are copies. After the next decode every use raises
    StaleLogitsError, and after the context's end ClosedError; ``copy()`` keeps the numbers.
    """

    _instead = "copy() gives an array"

    def __init__(self, outputs: Outputs, row: int) -> None:
        self._outputs = outputs
        self._row = row
        self._step = outputs.step

    @property
    def row(self) -> int:
        """The row of the batch."""
        return self._row

    @property
    def shape(self) -> tuple[int]:
        """``(n_vocab,)``."""
        return (self._outputs.n_vocab,)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32."""
        return np.dtype(np.float32)

    def copy(self) -> npt.NDArray[np.float32]:
        """Return the numbers in a writable array of their own, which does not depend on the context."""
        with self._outputs.handle as ptr:
            copy: npt.NDArray[np.float32] = self._view(ptr).copy()
            return copy

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        stale = "" if self._step == self._outputs.step and not self._outputs.handle.closed else " (stale)"
        return f"<Logits of row {self._row}: float32[{len(self)}]{stale}>"

    def __iter__(self) -> Iterator[np.float32]:
        return iter(self.copy())

    def __getitem__(self, index: Any) -> Any:
        index = _plain(index)
        with self._outputs.handle as ptr:
            return _owned(self._view(ptr)[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("logits cannot be shared without a copy: they do not outlive the next decode")
        return self.copy() if dtype is None else self.copy().astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        targets = inputs[:1] if method == "at" else kwargs.get("out", ())  # at() writes through read-only flags
        if any(isinstance(target, Logits) for target in targets):
            raise ValueError("logits are read-only; write to a copy()")
        others = [
            None if x is self else _plain(x) for x in inputs
        ]  # each takes the lock of its context: before this one
        kwargs = {key: _plain(value) for key, value in kwargs.items()}
        with self._outputs.handle as ptr:
            mine = self._shown(ptr, *(x for x in others if x is not None), *kwargs.values())
            plain = [mine if x is self else other for x, other in zip(inputs, others, strict=True)]
            return _owned(getattr(ufunc, method)(*plain, **kwargs))

    def __array_function__(self, function: Any, _types: Any, args: Any, kwargs: Any) -> Any:
        return function(*_plain(args), **{key: _plain(value) for key, value in kwargs.items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("base", "ctypes", "data", "flat"):  # these would share the buffer
            raise AttributeError(f"Logits has no {name}; take copy() first")
        attribute = getattr(np.ndarray, name)  # or AttributeError
        if not callable(attribute):
            with self._outputs.handle as ptr:
                return _owned(getattr(self._view(ptr), name))

        def method(*args: Any, **kwargs: Any) -> Any:
            args = _plain(args)
            kwargs = {key: _plain(value) for key, value in kwargs.items()}
            with self._outputs.handle as ptr:
                return _owned(getattr(self._shown(ptr, *args, *kwargs.values()), name)(*args, **kwargs))

        method.__name__ = name
        return method

    def _view(self, context_ptr: Any) -> npt.NDArray[np.float32]:
        """Return the array over llama.cpp's buffer. The caller holds the context's lock, and returns no part of it."""
        if self._step != self._outputs.step:
            raise StaleLogitsError(
                f"these logits (row {self._row}) were overwritten by a later decode; take copy() before the next one"
            )
        pointer = lib.llama_get_logits_ith(context_ptr, self._row)
        view = np.frombuffer(ffi.buffer(pointer, 4 * len(self)), dtype=np.float32)
        view.flags.writeable = False
        return view

    def _shown(self, context_ptr: Any, *others: Any) -> npt.NDArray[np.float32]:
        """Return the view, or a copy if another operand has code of its own, which may keep the array."""
        array = self._view(context_ptr)
        if not all(map(_keeps_nothing, others)):
            array = array.copy()
            array.flags.writeable = False
        return array


def _keeps_nothing(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_keeps_nothing, value))
    return type(value) is np.ndarray or isinstance(value, (int, float, complex, str, np.generic, type(None)))


def _plain(value: Any) -> Any:
    """Return ``value`` with a copy for each Logits in it."""
    if isinstance(value, Logits):
        array = value.copy()
        array.flags.writeable = False  # so that np.copyto(row, ...) does not seem to work
        return array
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _owned(value: Any) -> Any:
    """Return ``value``, copied if it shares llama.cpp's buffer."""
    if isinstance(value, np.ndarray) and (value.base is not None or not value.flags.writeable):
        return value.copy()
    return value

"""Handle: who owns a C object, who still uses it, and when it is freed.

Five rules, and where each is kept:

1. One idiom. A public object (Model, Context, ...) is freed by ``with``, by ``close()``, or, with a ``ResourceWarning``,
   by its finalizer. The finalizer holds the Handle, never the public object, so that it can run at all.
2. A child's Handle holds its parents' Handles; a parent knows its children. Closing a parent closes the children first,
   the youngest first. At exit the finalizers run youngest first too.
3. ``with handle as ptr`` raises ClosedError once the object is closed. There is no other way to the pointer.
4. Every call into C is made inside such a block, which counts it. ``close()`` asks the calls in flight to stop, where the
   object has a way to (``cancel``), and waits for them. Where C allows one caller at a time, ``exclusive`` makes the block
   a lock as well.
5. ``consume()`` hands the pointer to C for keeps: after it the object is closed and nothing is freed by us.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import ClosedError, ForkError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Handle", "Owner"]

_forked = False


def _after_fork() -> None:
    # OpenMP's and ggml's threads are gone in the child and a decode would wait for them for ever.
    global _forked  # noqa: PLW0603 - one flag for the process is the fact itself
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def refuse_after_fork() -> None:
    """Raise ForkError in a process that was forked after offgrid_llama was imported."""
    if _forked:
        raise ForkError(
            "this process was forked after offgrid_llama was imported, and llama.cpp's threads do not survive a fork: "
            'start it with the "spawn" method (multiprocessing.get_context("spawn"))'
        )


class Handle:
    """One C object: its pointer, the function that frees it, its parents and its children.

    ``with handle as ptr:`` is the only way to the pointer; it counts as a call in flight until the block ends.

    Args:
        name: how errors name the object, for instance ``Model smollm2.gguf``.
        ptr: the C pointer.
        free: frees ``ptr``; None for what C frees with something else.
        parents: handles that must not be freed before this one.
        cancel: asks the calls in flight to return soon; ``close()`` calls it before it waits.
        exclusive: one caller at a time; others wait for their turn.
    """

    __slots__ = (
        "__weakref__", "_busy", "_cancel", "_changed", "_children", "_closer", "_exclusive", "_free", "_mutex", "_parents",
        "_ptr", "_state", "_waiting", "name",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        ptr: Any,
        free: Callable[[Any], object] | None,
        *parents: Handle,
        cancel: Callable[[], None] | None = None,
        exclusive: bool = False,
    ) -> None:
        self.name = name
        self._ptr = ptr
        self._free = free
        self._cancel = cancel
        self._exclusive = exclusive
        self._state = ""  # "" while open, then why it is not
        self._closer = 0
        # Reentrant: the garbage collector may run a finalizer of ours in the middle of our own critical section.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._waiting = 0
        self._busy: dict[int, int] = {}  # thread id -> calls in flight
        self._children: dict[int, Handle] = {}  # in order of age
        self._parents: list[Handle] = []
        try:
            for parent in parents:
                self.adopt(parent)
        except BaseException:
            self.close()
            raise

    def adopt(self, parent: Handle) -> None:
        """Become a child of ``parent`` as well: from now on closing ``parent`` closes this first."""
        with parent._mutex:
            parent.check_open()
            parent._children[id(self)] = self
        self._parents.append(parent)

    @property
    def parents(self) -> tuple[Handle, ...]:
        """The handles that this one must not outlive."""
        return tuple(self._parents)

    @property
    def closed(self) -> bool:
        """Whether the object was closed or given away."""
        return bool(self._state)

    def check_open(self) -> None:
        """Raise ClosedError, with the object's name, unless the object is open."""
        if self._state:
            raise ClosedError(f"{self.name} {self._state}")

    def __enter__(self) -> Any:
        if _forked:
            refuse_after_fork()
        me, busy = get_ident(), self._busy
        before = busy.get(me, 0)
        if self._exclusive and before:
            raise RuntimeError(f"{self.name} was used from a callback of its own call")
        try:
            if self._exclusive:
                with self._mutex:
                    if busy:
                        self._wait(lambda: bool(self._state) or not busy)
                    busy[me] = 1
            else:  # no lock: no other thread writes this entry, and close() sets _state before it looks for entries
                busy[me] = before + 1
            if self._state:
                self.check_open()
            return self._ptr
        except BaseException:  # also Ctrl-C, wherever it came
            self._leave(me, before)
            raise

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        self._leave(me, self._busy[me] - 1)

    def _leave(self, me: int, left: int) -> None:
        if left:
            self._busy[me] = left
            return
        self._busy.pop(me, None)
        if self._waiting:  # whoever waits counts itself before it looks for entries
            with self._mutex:
                self._changed.notify_all()

    def consume(self, reason: str) -> Any:
        """Give the pointer away for keeps and return it; ``reason`` completes "<name> ..." in later ClosedErrors."""
        with self._mutex:
            self.check_open()
            self._wait(lambda: not self._busy)
            self.check_open()
            self._state = reason
            ptr, self._ptr = self._ptr, None
        self._leave_parents()
        return ptr

    def close(self) -> None:
        """Close the children, youngest first, then free the object. A second close does nothing.

        Waits for calls in flight on other threads, after asking them to stop where the object can; and for another
        thread that is closing it already. RuntimeError in a callback of the object's, or a child's, own call.
        """
        me = get_ident()
        if _forked:  # whoever holds the locks, or is in a call, is not in this process: nothing to wait for or to free
            self._state = self._state or "is closed"
            for child in tuple(self._children.values()):
                child.close()
            return
        with self._mutex:
            # Another thread that closes it may give up, on Ctrl-C; then it is this one's turn.
            while self._state and self._ptr is not None and self._closer != me:
                self._wait(lambda: self._ptr is None or not self._state)
            if self._state:
                return
            self._refuse_own_callback(me)
            self._state, self._closer = "is closed", me  # from here on no new call and no new child
        try:
            while self._children:
                for child in reversed(tuple(self._children.values())):
                    child.close()
            with self._mutex:
                if self._busy and self._cancel is not None:
                    self._cancel()
                self._wait(lambda: not self._busy)
        except BaseException:  # Ctrl-C while waiting: as if close() had not been called
            with self._mutex:
                self._state, self._closer = "", 0
                self._changed.notify_all()
            raise
        try:
            if self._free is not None:
                self._free(self._ptr)
        finally:  # Ctrl-C comes after the call
            self._leave_parents()
            with self._mutex:
                self._ptr = None
                self._changed.notify_all()

    def _refuse_own_callback(self, me: int) -> None:
        if me in self._busy or self._closer == me:
            raise RuntimeError(f"{self.name} cannot be closed from a callback of its own call")
        for child in tuple(self._children.values()):
            child._refuse_own_callback(me)

    def _leave_parents(self) -> None:
        for parent in self._parents:
            parent._children.pop(id(self), None)

    def _wait(self, predicate: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            self._changed.wait_for(predicate)
        finally:
            self._waiting -= 1


def _finalize(handle: Handle) -> None:
    if not handle.closed and not _forked:
        try:
            warnings.warn(f"unclosed {handle.name}: use `with`, or call close()", ResourceWarning, stacklevel=2)
        finally:  # the warning may be an error
            handle.close()


class Owner:
    """Base of the public classes that own a C object: ``close()``, ``closed``, ``with``, and a finalizer."""

    _handle: Handle
    _finalizer: weakref.finalize[[Handle], Any]

    def _own(self, handle: Handle) -> None:
        self._handle = handle
        self._finalizer = weakref.finalize(self, _finalize, handle)

    @property
    def closed(self) -> bool:
        """Whether the object was closed, by itself or with its owner, or given away."""
        return self._handle.closed

    def close(self) -> None:
        """Free the C object, after its children. Waits for calls in flight on other threads. May be called twice."""
        self._handle.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        self._handle.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self._handle.name}{' (' + self._handle._state + ')' if self._handle.closed else ''}>"

"""Handle: the owner of a C object, the calls that use it, and the moment it is freed.

Five rules:

1. One idiom. A public object (Model, Context, ...) is freed by ``with``, by ``close()``, or by its finalizer, which gives a
   ``ResourceWarning``. The finalizer holds the Handle, never the public object; otherwise it could not run.
2. The Handle of a child holds the Handles of its parents, and a parent knows its children. A parent closes its children
   first, the youngest before the others. At exit the finalizers run in the same order.
3. ``with handle as ptr`` is the only way to the pointer. It raises ClosedError after the object was closed.
4. Every call into C is made inside of such a block, which counts it. ``close()`` asks the calls in flight to stop, if the
   object has a way to (``cancel``), and waits for them. If C allows one caller at a time, the block is a lock, too
   (``exclusive``).
5. ``consume()`` gives the pointer to C for good. After it the object is closed, and Python frees nothing.
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

from offgrid_llama.errors import ClosedError, ForkError

from .bound import Bound

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Handle", "Owner"]

_forked = False


def _after_fork() -> None:
    # The child has none of the threads of OpenMP and ggml, and a decode would wait for them forever.
    global _forked  # noqa: PLW0603 - the process was forked or not
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

    ``with handle as ptr:`` is the only way to the pointer. The block counts as a call in flight.

    Args:
        name: the object's name in errors, for instance ``Model smollm2.gguf``.
        ptr: the C pointer.
        free: frees ``ptr``; None if C frees it together with another object.
        parents: handles of objects that must live as long as this one.
        cancel: asks the calls in flight to return soon; ``close()`` calls it before it waits.
        exclusive: one thread at a time may be in a block; others wait.
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
        self._state = ""  # empty while the object is open, then the reason why it is not
        self._closer = 0  # the thread in close()
        # Reentrant: the garbage collector may run a finalizer, which closes objects, while this thread holds it.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._waiting = 0
        self._busy: dict[int, int] = {}  # thread id -> calls in flight
        self._children: dict[int, Handle] = {}  # by id, the oldest first
        self._parents: list[Handle] = []
        try:
            for parent in parents:
                self.adopt(parent)
        except BaseException:
            self.close()
            raise

    def adopt(self, parent: Handle) -> None:
        """Become a child of ``parent`` as well: ``parent.close()`` closes this object first."""
        with parent._mutex:
            parent.check_open()
            parent._children[id(self)] = self
        self._parents.append(parent)

    @property
    def parents(self) -> tuple[Handle, ...]:
        """The handles that this one must not outlive."""
        return tuple(self._parents)

    @property
    def children(self) -> tuple[Handle, ...]:
        """The open handles that must not outlive this one, the oldest first."""
        return tuple(self._children.values())

    @property
    def n_waiting(self) -> int:
        """Threads that wait for their turn, or for calls in flight to return."""
        return self._waiting

    @property
    def n_in_flight(self) -> int:
        """Threads that are in a call."""
        return len(self._busy)

    @property
    def closed(self) -> bool:
        """Whether the object was closed or given away."""
        return bool(self._state)

    def __str__(self) -> str:
        return f"{self.name} ({self._state})" if self._state else self.name

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
            else:  # without a lock: no other thread writes this entry, and close() sets _state before it reads entries
                busy[me] = before + 1
            if self._state:
                self.check_open()
            return self._ptr
        except BaseException:  # Ctrl-C may come after any line above
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
        if self._waiting:  # a waiting thread counts itself before it reads entries
            with self._mutex:
                self._changed.notify_all()

    def consume(self, reason: str) -> Any:
        """Give the pointer away for good, and return it. ``reason`` follows the name in later ClosedErrors."""
        with self._mutex:
            self.check_open()
            self._wait(lambda: not self._busy)
            self.check_open()
            self._state = reason
            ptr, self._ptr = self._ptr, None
        self._leave_parents()
        return ptr

    def close(self) -> None:
        """Close the children, the youngest first, then free the object. A second close does nothing.

        It asks calls in flight on other threads to stop, if the object can, and waits for them, and for another thread that
        is closing the object. Raises RuntimeError in a callback of a call of the object, or of a child.
        """
        if _forked:
            self._close_after_fork()
            return
        me = get_ident()
        with self._mutex:
            self._wait_for_other_closers(me)
            if self._state:
                return
            self._refuse_own_callback(me)
            self._state, self._closer = "is closed", me  # from here on no new call and no new child
        try:
            while self._children:
                for child in reversed(self.children):
                    child.close()
            with self._mutex:
                if self._busy and self._cancel is not None:
                    self._cancel()
                self._wait(lambda: not self._busy)
        except BaseException:  # Ctrl-C while it waits: the object is open again
            with self._mutex:
                self._state, self._closer = "", 0
                self._changed.notify_all()
            raise
        try:
            if self._free is not None:
                self._free(self._ptr)
        finally:  # also after Ctrl-C, which comes when the call has returned
            self._leave_parents()
            with self._mutex:
                self._ptr = None
                self._changed.notify_all()

    def _close_after_fork(self) -> None:
        """Mark the object and its children as closed: the threads that hold locks, or are in a call, are not here."""
        self._state = self._state or "is closed"
        for child in self.children:
            child.close()

    def _wait_for_other_closers(self, me: int) -> None:
        # Another thread in close() gives up on Ctrl-C, and the object is open again; then this one goes on.
        while self._state and self._ptr is not None and self._closer != me:
            self._wait(lambda: self._ptr is None or not self._state)

    def _refuse_own_callback(self, me: int) -> None:
        if me in self._busy or self._closer == me:
            raise RuntimeError(f"{self.name} cannot be closed from a callback of its own call")
        for child in self.children:
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
        finally:  # a filter may turn the warning into an error
            handle.close()


class Owner(Bound):
    """Base of the public classes that own a C object: ``close()``, ``closed``, ``with``, and a finalizer.

    Attributes:
        handle: the Handle of the C object. Internal: for modules of offgrid_llama, and may change in any release.
    """

    handle: Handle
    _finalizer: weakref.finalize[[Handle], Any]

    def _own(self, handle: Handle) -> None:
        self.handle = handle
        self._finalizer = weakref.finalize(self, _finalize, handle)

    @property
    def closed(self) -> bool:
        """Whether the object was closed, by itself or with a parent, or given away."""
        return self.handle.closed

    def close(self) -> None:
        """Free the C object, after its children. Waits for calls in flight on other threads. May be called twice."""
        self.handle.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        self.handle.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.handle}>"

"""Bound: objects that cannot leave their process or be there twice, and what to do instead."""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = ["Bound"]


class Bound:
    """Base of the objects that hold memory of llama.cpp, a lock or a thread, so that no copy of them would work.

    Pickle, ``copy`` and all that sends objects to other processes get a TypeError with the object's name and the way out.

    Attributes:
        _instead: what to do instead; a subclass sets it.
    """

    __slots__ = ()
    _instead: ClassVar[str] = "make another one where you need it"

    def __reduce_ex__(self, protocol: object) -> Any:
        kind = type(self).__name__
        told = getattr(getattr(self, "handle", None), "name", kind)
        name = told if told.startswith(kind) else kind  # of borrowed parts, the handle is their owner's
        raise TypeError(
            f"{name} cannot be pickled or copied, because it is bound to memory or threads of this process: {self._instead}"
        )

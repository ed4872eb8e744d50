"""How an engine ends, and the models that it has loaded, by its user's hand or without it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offgrid_llama.native.bound import Bound

if TYPE_CHECKING:
    import weakref
    from types import TracebackType

    from typing_extensions import Self

    from offgrid_llama.media.projector import Projector
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

    from .loop import Loop

__all__ = ["Closing", "close_models", "finalize"]


class Closing(Bound):
    """The part of an Engine that ends it. A subclass has its loop, the models that it has loaded, and its finalizer."""

    _loop: Loop
    _own: list[Model | LoRA | Projector]
    _finalizer: weakref.finalize[..., Closing]

    @property
    def closed(self) -> bool:
        """Whether the engine is closed, or has failed."""
        return bool(self._loop.closed)

    def close(self, *, drain: bool = False) -> None:
        """Free the context, and the models that the engine has loaded. May be called twice.

        Requests end as cancelled. With ``drain``, requests that were submitted before finish first, and this waits for
        them; Ctrl-C cancels them.
        """
        self._loop.close(drain)
        self._finalizer.detach()
        close_models(self._own)

    def __enter__(self) -> Self:
        self._loop.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)  # which waits for the step under way

    def __repr__(self) -> str:
        return f"<{self._loop.name}{f' ({self._loop.closed})' if self._loop.closed else ''}>"


def close_models(models: Sequence[Model | LoRA | Projector]) -> None:
    """Close the models, adapters and projectors that an engine has loaded."""
    for model in models:
        model.close()


def finalize(loop: Loop, models: Sequence[Model | LoRA | Projector]) -> None:
    """Close an Engine that its user has not closed."""
    if loop.closed:
        return
    try:
        warnings.warn(f"unclosed {loop.name}: use `with`, or call close()", ResourceWarning, stacklevel=2)
    finally:  # the warning may be an error
        loop.close()
        close_models(models)

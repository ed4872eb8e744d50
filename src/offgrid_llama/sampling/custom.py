"""CustomSampler: a Python function as a member of a chain (``llama_sampler_init``), and how C calls it.

The function works on copies. llama.cpp's candidates lie in memory that the next step overwrites; the function may keep its
arrays, and write to them at any time, without effect on anything else.

C owns nothing of it. ``user_data`` is a handle to a Callbacks object that the Sampler holds, and after it the SamplerChain;
only their calls use it, and freeing the C object does not look at it. ``native/callbacks.py`` says how exceptions travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import SamplerError
from offgrid_llama.native.callbacks import keep
from offgrid_llama.native.check import number

from .sampler import Sampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Apply = Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], int | None]

__all__ = ["Callbacks", "CustomSampler"]

_CANDIDATE = [("id", "i4"), ("logit", "f4"), ("p", "f4")]  # llama_token_data


@dataclass(eq=False)
class Callbacks:
    """The functions of a custom sampler that C calls; see ``samplers.custom`` for the arguments."""

    name: str
    apply: Apply
    selects: bool
    accept: Callable[[int], object] | None
    reset: Callable[[], object] | None
    clone: Callable[[], Sampler] | None
    user_data: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import numpy  # noqa: F401 - so that the first sample does not wait for the import

        self.user_data = ffi.new_handle(self)

    def new(self) -> Any:
        """Return a ``llama_sampler *`` that calls this object."""
        return lib.llama_sampler_init(ffi.addressof(lib, "og_custom_sampler"), self.user_data)

    def run(self, candidates: Any, size: int) -> int:
        """Apply the function, and return the index of the candidate that it selects, or OG_NOTHING_SELECTED."""
        import numpy as np

        # No name for the shared array: a traceback would keep it.
        ids, logits = (_shared(candidates, size)[name].copy() for name in ("id", "logit"))
        token = self.apply(ids, logits)
        if not (logits < np.inf).all():
            raise SamplerError(f"the sampler {self.name} wrote NaN or +inf to logits; -inf forbids a token")
        _shared(candidates, size)["logit"] = logits
        if not self.selects:
            if token is not None:
                raise TypeError(
                    f"the sampler {self.name} returned {token!r}: only with selects=True it returns a token"
                )
            return int(lib.OG_NOTHING_SELECTED)
        number(f"the token that the sampler {self.name} returned", token, 0)  # type: ignore[arg-type]
        (places,) = (_shared(candidates, size)["id"] == token).nonzero()
        if not len(places):
            raise ValueError(f"the sampler {self.name} returned {token}, which is none of the {size} candidates")
        return int(places[0])


class CustomSampler(Sampler):
    """A sampler whose work Python functions do; ``samplers.custom`` makes it."""

    def __init__(self, callbacks: Callbacks, ptr: Any = None) -> None:
        self._callbacks = callbacks  # C calls it
        super().__init__("custom", callbacks.new() if ptr is None else ptr)

    def _take(self, ptr: Any) -> None:
        self.name, self.selects = self._callbacks.name, self._callbacks.selects
        super()._take(ptr)

    def owning(self, ptr: Any) -> Sampler:
        """Return an owner of ``ptr`` with the same functions. Package-internal."""
        return CustomSampler(self._callbacks, ptr)

    def copy_of(self, ptr: Any) -> Sampler:
        """Return a sampler in the same state, or raise SamplerError. Package-internal."""
        del ptr  # C has no state of it
        if self._callbacks.clone is not None:
            return self._callbacks.clone()
        if self._callbacks.accept is not None or self._callbacks.reset is not None:
            raise SamplerError(f"the sampler {self.name} has a state (accept or reset) and no clone=")
        return CustomSampler(self._callbacks)


def _shared(candidates: Any, size: int) -> npt.NDArray[Any]:
    """Return the array over llama.cpp's candidates."""
    import numpy as np

    return np.frombuffer(ffi.buffer(candidates, size * ffi.sizeof("llama_token_data")), dtype=_CANDIDATE)


@ffi.def_extern(error=lib.OG_RAISED, onerror=keep)  # type: ignore[untyped-decorator]
def og_on_apply(user_data: Any, candidates: Any, size: int) -> int:
    """Apply a custom sampler to ``size`` candidates."""
    return ffi.from_handle(user_data).run(candidates, size)  # type: ignore[no-any-return]


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_accept(user_data: Any, token: int) -> None:
    """Pass a chosen token to a custom sampler."""
    custom: Callbacks = ffi.from_handle(user_data)
    if custom.accept is not None:
        custom.accept(token)


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_reset(user_data: Any) -> None:
    """Reset a custom sampler."""
    custom: Callbacks = ffi.from_handle(user_data)
    if custom.reset is not None:
        custom.reset()

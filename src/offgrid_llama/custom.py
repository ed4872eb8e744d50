"""Custom: a Python function as a member of a chain (``llama_sampler_init``), and how C calls it.

It works on copies. llama.cpp's candidates lie in memory that the next step writes to; arrays of the function's own may be
kept, and written to at any time, and nothing is read or changed behind anybody's back.

C owns nothing of it. ``user_data`` is a handle to an object that the Sampler holds, and after it the SamplerChain; only
calls of theirs use it, and freeing the C object does not look at it. ``_callbacks`` says what becomes of exceptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._callbacks import keep
from ._capi import ffi, lib
from ._check import number
from .errors import SamplerError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .sampling import Sampler

    Apply = Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], int | None]

__all__ = ["Custom"]

_CANDIDATE = [("id", "i4"), ("logit", "f4"), ("p", "f4")]  # llama_token_data


class Custom:
    """What C calls for a custom sampler; see ``samplers.custom`` for the arguments."""

    def __init__(
        self,
        name: str,
        apply: Apply,
        selects: bool,
        accept: Callable[[int], object] | None,
        reset: Callable[[], object] | None,
        clone: Callable[[], Sampler] | None,
    ) -> None:
        import numpy  # noqa: F401 - so that it is not the first sample that waits for the import

        self.name = name
        self.apply = apply
        self.selects = selects
        self.accept = accept
        self.reset = reset
        self.clone = clone
        self.user_data = ffi.new_handle(self)

    def new(self) -> Any:
        """Return a ``llama_sampler *`` that calls this object."""
        return lib.llama_sampler_init(ffi.addressof(lib, "og_custom"), self.user_data)

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
    """Tell a custom sampler what was chosen."""
    custom: Custom = ffi.from_handle(user_data)
    if custom.accept is not None:
        custom.accept(token)


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_reset(user_data: Any) -> None:
    """Tell a custom sampler to begin anew."""
    custom: Custom = ffi.from_handle(user_data)
    if custom.reset is not None:
        custom.reset()

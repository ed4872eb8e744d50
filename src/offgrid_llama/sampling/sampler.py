"""Sampler: one of llama.h's samplers (``llama_sampler``), and the table of how each is declared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from offgrid_llama._capi import lib
from offgrid_llama.errors import SamplerError
from offgrid_llama.native.check import INT32_MAX, not_null, number, real
from offgrid_llama.native.handle import Handle, Owner

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

__all__ = [
    "AMOUNT", "ANY", "COUNT", "DEFAULT_SEED", "LAST_N", "MAX_CANDIDATES", "MAX_FLOAT", "SEED", "SHARE", "TABLE", "Argument",
    "Kind", "Sampler", "declared",
]  # fmt: skip

DEFAULT_SEED = 0xFFFFFFFF
"""llama.h's LLAMA_DEFAULT_SEED: a random one."""

MAX_CANDIDATES = 2**31
MAX_FLOAT = (2 - 2**-23) * 2.0**127  # llama.h takes float32

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Argument:
    """The values that an argument of a sampler may have.

    Attributes:
        type: int or float.
        low, high: the smallest and the largest value; floats are finite.
        default: what it is when it is left out.
        none: what llama.h is given for None, where that is allowed.
    """

    type: type[int] | type[float]
    low: float
    high: float
    default: float | None = None
    none: int | None = None

    def check(self, name: str, value: Any) -> Any:
        """Return ``value`` for llama.h, or raise TypeError or ValueError with ``name`` and the range."""
        if value is None and self.none is not None:
            return self.none
        return (number if self.type is int else real)(name, value, self.low, self.high)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kind:
    """A row of ``TABLE``: what is declared of a sampler.

    Attributes:
        name: llama.cpp's, for instance ``top-k``.
        arguments: those that are numbers, by name.
        selects: it chooses the token; in a chain it is the last, and the only one.
        truncates: it throws tokens away; in a chain it comes after the grammar.
        needs_vocab: it is made for the vocabulary of one model.
    """

    name: str
    arguments: Mapping[str, Argument]
    selects: bool = False
    truncates: bool = False
    needs_vocab: bool = False


TABLE: dict[str, Kind] = {}
"""Every sampler of llama.h by llama.cpp's name, and ``custom``."""

COUNT = Argument(int, 0, INT32_MAX)
SHARE = Argument(float, 0, 1)
AMOUNT = Argument(float, 0, MAX_FLOAT)
ANY = Argument(float, -MAX_FLOAT, MAX_FLOAT)
LAST_N = Argument(int, 0, 2**20)
SEED = Argument(int, 0, DEFAULT_SEED - 1, none=DEFAULT_SEED)


def declared(
    *, selects: bool = False, truncates: bool = False, **ranges: Argument
) -> Callable[[Callable[_P, Sampler]], Callable[_P, Sampler]]:
    """Make a function's declaration a row of TABLE, and check its arguments against ``ranges`` before it runs."""

    def declare(function: Callable[_P, Sampler]) -> Callable[_P, Sampler]:
        signature = inspect.signature(function)
        name = function.__name__.replace("_", "-")
        arguments = {key: replace(value, default=signature.parameters[key].default) for key, value in ranges.items()}
        TABLE[name] = Kind(name, arguments, selects, truncates, needs_vocab="vocab" in signature.parameters)

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> Sampler:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            for key, argument in arguments.items():
                given.arguments[key] = argument.check(key, given.arguments[key])
            return function(*given.args, **given.kwargs)

        return checked

    return declare


class Sampler(Owner):
    """One sampler, from a function of ``offgrid_llama.samplers`` or from ``Grammar.sampler``. ``chain.add`` consumes it.

    Attributes:
        name: llama.cpp's name, for instance ``top-k``, or a custom sampler's own.
        kind: its row of ``TABLE``.
        selects: whether it chooses the token.
        vocab: the Vocab that it was made for; None if it works with any.
        max_candidates: the most tokens that it leaves.
    """

    _instead = "make another one"

    def __init__(self, name: str, ptr: Any, vocab: Vocab | None = None, *, max_candidates: int | None = None) -> None:
        self.kind = TABLE[name]
        self.name = name
        self.selects = self.kind.selects
        self.vocab = vocab
        self.max_candidates = MAX_CANDIDATES if max_candidates is None else max_candidates
        self._take(ptr)

    def _take(self, ptr: Any) -> None:
        """Own ``ptr``, or raise SamplerError for NULL."""
        failure = lambda log: SamplerError(f"the sampler {self.name} could not be made", log=log)  # noqa: E731
        ptr = not_null(ptr, failure, lib.llama_sampler_free)
        parents = (self.vocab.handle,) if self.vocab is not None else ()
        self._own(Handle(f"sampler {self.name}", ptr, lib.llama_sampler_free, *parents, exclusive=True))

    def owning(self, ptr: Any) -> Sampler:
        """Return an owner of ``ptr``: of this sampler, taken out of its chain, or of a copy of it. Package-internal."""
        return Sampler(self.kind.name, ptr, self.vocab, max_candidates=self.max_candidates)

    def copy_of(self, ptr: Any) -> Sampler:
        """Return a sampler in the same state; ``ptr`` is this one in its chain. Package-internal."""
        return self.owning(lib.llama_sampler_clone(ptr))

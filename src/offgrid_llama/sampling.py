"""Samplers: from logits to a token (``llama_sampler``). ``offgrid_llama.samplers`` is this module.

Each function makes one of llama.h's samplers, and its declaration is a row of ``TABLE``: the ranges stand in the decorator,
types and defaults in the signature. A ``SamplerChain`` applies samplers in order; ``SamplingParams`` has the usual one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from ._capi import ffi, lib
from ._check import INT32_MAX, not_null, number, real
from ._handle import Handle, Owner
from .custom import Custom
from .errors import SamplerError

if TYPE_CHECKING:
    from .custom import Apply
    from .vocab import Vocab

__all__ = [
    "TABLE", "Argument", "Kind", "Sampler", "adaptive_p", "custom", "dist", "dry", "greedy", "infill", "logit_bias",
    "min_p", "mirostat", "mirostat_v2", "penalties", "temp", "temp_ext", "top_k", "top_n_sigma", "top_p", "typical", "xtc",
]  # fmt: skip

DEFAULT_SEED = 0xFFFFFFFF
"""llama.h's LLAMA_DEFAULT_SEED: a random one."""

MAX_CANDIDATES = 2**31
MAX_FLOAT = (2 - 2**-23) * 2.0**127  # llama.h takes float32

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Argument:
    """What an argument of a sampler may be.

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


def _declared(
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
    """One sampler, from a function of this module or from ``Grammar.sampler``. ``chain.add`` takes it for keeps.

    Attributes:
        name: llama.cpp's name, for instance ``top-k``, or a custom sampler's own.
        kind: its row of ``TABLE``.
        selects: whether it chooses the token.
    """

    def __init__(self, name: str, ptr: Any, vocab: Vocab | None = None, custom: Custom | None = None) -> None:
        self.kind = TABLE[name]
        self.name = custom.name if custom is not None else name
        self.selects = custom.selects if custom is not None else self.kind.selects
        self._vocab = vocab
        self._custom = custom  # which C calls
        self._at_most = MAX_CANDIDATES  # tokens that it leaves
        failure = lambda log: SamplerError(f"the sampler {self.name} could not be made", log=log)  # noqa: E731
        ptr = not_null(ptr, failure, lib.llama_sampler_free)
        parents = (vocab._handle,) if vocab is not None else ()
        self._own(Handle(f"sampler {self.name}", ptr, lib.llama_sampler_free, *parents, exclusive=True))

    def _again(self, ptr: Any) -> Sampler:
        """Return an owner for ``ptr``: this sampler, taken out of its chain, or a copy of it."""
        sampler = Sampler(self.kind.name, ptr, self._vocab, self._custom)
        sampler._at_most = self._at_most
        return sampler

    def _copy(self, ptr: Any) -> Sampler:
        """Return a sampler in the same state; ``ptr`` is this one in its chain."""
        if self._custom is None:
            return self._again(lib.llama_sampler_clone(ptr))
        if self._custom.clone is not None:
            return self._custom.clone()
        if self._custom.accept is not None or self._custom.reset is not None:
            raise SamplerError(f"the sampler {self.name} has a state (accept or reset) and no clone=")
        return self._again(self._custom.new())


@_declared(selects=True)
def greedy() -> Sampler:
    """Select the token with the largest logit."""
    return Sampler("greedy", lib.llama_sampler_init_greedy())


@_declared(selects=True, seed=SEED)
def dist(seed: int | None = None) -> Sampler:
    """Select at random by probability. ``seed`` is 0 to 2**32 - 2; None is a random one."""
    return Sampler("dist", lib.llama_sampler_init_dist(seed))


@_declared(truncates=True, k=COUNT)
def top_k(k: int = 40) -> Sampler:
    """Keep the ``k`` most probable tokens; 0 keeps all."""
    sampler = Sampler("top-k", lib.llama_sampler_init_top_k(k))
    sampler._at_most = k or MAX_CANDIDATES
    return sampler


@_declared(truncates=True, p=SHARE, min_keep=COUNT)
def top_p(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the most probable tokens that sum up to ``p``, 0 to 1 (nucleus, arXiv:1904.09751), at least ``min_keep``."""
    return Sampler("top-p", lib.llama_sampler_init_top_p(p, min_keep))


@_declared(truncates=True, p=SHARE, min_keep=COUNT)
def min_p(p: float = 0.05, min_keep: int = 1) -> Sampler:
    """Keep tokens at least ``p`` times, 0 to 1, as probable as the most probable one (arXiv:2407.01082)."""
    return Sampler("min-p", lib.llama_sampler_init_min_p(p, min_keep))


@_declared(truncates=True, p=SHARE, min_keep=COUNT)
def typical(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the locally typical tokens up to a mass of ``p``, 0 to 1 (arXiv:2202.00666)."""
    return Sampler("typical", lib.llama_sampler_init_typical(p, min_keep))


@_declared(temperature=AMOUNT)
def temp(temperature: float = 0.8) -> Sampler:
    """Divide the logits by ``temperature``; 0 leaves the largest only."""
    return Sampler("temp", lib.llama_sampler_init_temp(temperature))


@_declared(temperature=AMOUNT, delta=AMOUNT, exponent=AMOUNT)
def temp_ext(temperature: float = 0.8, delta: float = 0.0, exponent: float = 1.0) -> Sampler:
    """Choose the temperature within ``temperature`` +- ``delta`` by entropy (arXiv:2309.02772)."""
    return Sampler("temp-ext", lib.llama_sampler_init_temp_ext(temperature, delta, exponent))


@_declared(truncates=True, probability=SHARE, threshold=SHARE, min_keep=COUNT, seed=SEED)
def xtc(probability: float = 0.5, threshold: float = 0.1, min_keep: int = 1, seed: int | None = None) -> Sampler:
    """With ``probability``, drop all tokens above ``threshold`` but the least probable of them (XTC)."""
    return Sampler("xtc", lib.llama_sampler_init_xtc(probability, threshold, min_keep, seed))


@_declared(truncates=True, n=AMOUNT)
def top_n_sigma(n: float = 1.0) -> Sampler:
    """Keep tokens within ``n`` standard deviations of the largest logit (arXiv:2411.07641); 0 keeps all."""
    return Sampler("top-n-sigma", lib.llama_sampler_init_top_n_sigma(n))


@_declared(selects=True, seed=SEED, tau=AMOUNT, eta=AMOUNT, m=Argument(int, 2, INT32_MAX))
def mirostat(vocab: Vocab, seed: int | None = None, tau: float = 5.0, eta: float = 0.1, m: int = 100) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 1.0, arXiv:2007.14966).

    ``m``, 2 to all tokens, is from how many of the most probable ones it estimates the shape of the distribution.
    """
    m = number("m", m, 2, vocab.n_tokens)
    return Sampler("mirostat", lib.llama_sampler_init_mirostat(vocab.n_tokens, seed, tau, eta, m), vocab)


@_declared(selects=True, seed=SEED, tau=AMOUNT, eta=AMOUNT)
def mirostat_v2(seed: int | None = None, tau: float = 5.0, eta: float = 0.1) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 2.0, arXiv:2007.14966)."""
    return Sampler("mirostat-v2", lib.llama_sampler_init_mirostat_v2(seed, tau, eta))


@_declared(last_n=LAST_N, repeat=Argument(float, 1e-6, MAX_FLOAT), freq=ANY, present=ANY)
def penalties(vocab: Vocab, last_n: int = 64, repeat: float = 1.0, freq: float = 0.0, present: float = 0.0) -> Sampler:
    """Make the last ``last_n`` tokens (0 to 2**20) less probable.

    ``repeat`` divides their logits (above 0, 1.0 is off); ``freq`` for each occurrence, and ``present`` once, is subtracted.
    """
    ptr = lib.llama_sampler_init_penalties(vocab.n_tokens, last_n, repeat, freq, present)
    return Sampler("penalties", ptr, vocab)


@_declared(multiplier=AMOUNT, base=Argument(float, 1, MAX_FLOAT), allowed_length=COUNT, last_n=LAST_N)
def dry(
    vocab: Vocab,
    multiplier: float = 0.8,
    base: float = 1.75,
    allowed_length: int = 2,
    last_n: int = 1024,
    breakers: Iterable[str] = ("\n", ":", '"', "*"),
) -> Sampler:
    """Penalise tokens that would go on with a repetition longer than ``allowed_length`` tokens (DRY).

    The penalty is ``multiplier * base ** (length - allowed_length)``; repetitions end at the strings in ``breakers``, at
    most 256.
    """
    texts = [ffi.new("char[]", text.encode("utf-8")) for text in breaker_strings(breakers)]  # copied before it returns
    with vocab._handle:
        ptr = lib.llama_sampler_init_dry(
            vocab._ptr, multiplier, base, allowed_length, last_n, ffi.new("const char *[]", texts), len(texts)
        )
        return Sampler("dry", ptr, vocab)


def breaker_strings(breakers: Iterable[str], name: str = "breakers") -> tuple[str, ...]:
    """Return the strings that end a repetition, or raise for what are none; ``name`` is what the error calls them."""
    strings = (breakers,) if isinstance(breakers, str) else tuple(breakers)
    for i, string in enumerate(strings):
        if not isinstance(string, str):
            raise TypeError(f"{name}[{i}] must be str, not {type(string).__name__}")
    if len(strings) > 256:
        raise ValueError(f"{name} must be at most 256 strings, not {len(strings)}")
    return strings


@_declared(selects=True, target=SHARE, decay=Argument(float, 0, 0.99), seed=SEED)
def adaptive_p(target: float = 0.5, decay: float = 0.9, seed: int | None = None) -> Sampler:
    """Select tokens near a ``target`` probability, 0 to 1, that adapts with ``decay``, 0 to 0.99.

    A clone begins its random numbers anew, for llama.cpp does not copy them.
    """
    return Sampler("adaptive-p", lib.llama_sampler_init_adaptive_p(target, decay, seed))


@_declared()
def logit_bias(vocab: Vocab, bias: Mapping[int, float]) -> Sampler:
    """Add ``bias[token]`` to the logits of tokens; ``-inf`` forbids a token."""
    checked = check_bias(bias, vocab.n_tokens)
    entries = ffi.new("llama_logit_bias[]", [{"token": token, "bias": value} for token, value in checked.items()])
    return Sampler("logit-bias", lib.llama_sampler_init_logit_bias(vocab.n_tokens, len(checked), entries), vocab)


def check_bias(bias: Mapping[int, float], n_tokens: int = INT32_MAX, name: str = "bias") -> dict[int, float]:
    """Return ``bias`` as ints and floats, or raise for other things; ``name`` is what the error calls it."""
    return {
        number(f"{name} token", token, 0, n_tokens - 1): value
        if value == -float("inf")
        else real(f"{name}[{token}]", value, -MAX_FLOAT, MAX_FLOAT)
        for token, value in bias.items()
    }


@_declared(truncates=True)
def infill(vocab: Vocab) -> Sampler:
    """For fill-in-the-middle, after top-k and top-p: merge tokens with a common prefix, end where that is likely.

    A chain takes it only after a ``top_k`` of at most 1,000: it compares each candidate with each.
    """
    if vocab.eot is None and vocab.eos is None:
        raise SamplerError(f"infill needs a token that ends the text, and {vocab._handle.name} has none")
    with vocab._handle:
        return Sampler("infill", lib.llama_sampler_init_infill(vocab._ptr), vocab)


@_declared()
def custom(
    apply: Apply,
    *,
    name: str = "custom",
    selects: bool = False,
    accept: Callable[[int], object] | None = None,
    reset: Callable[[], object] | None = None,
    clone: Callable[[], Sampler] | None = None,
) -> Sampler:
    """Make a sampler of a Python function (``llama_sampler_init``).

    What the functions raise comes out of ``chain.sample`` (or ``accept``, ``reset``, ``clone``), and the chain goes on with
    the next call. They cannot use the chain, nor the context, that they are called for.

    Args:
        apply: called as ``apply(ids, logits)`` for each token, with what the samplers before it leave: ``ids``, int32[n],
            and ``logits``, float32[n], in any order. What it writes to ``logits`` is taken over when it returns; -inf
            forbids a token. Both are copies, and may be kept.
        name: how ``chain.names`` and errors call it.
        selects: ``apply`` returns the token to select, one of ``ids``; the sampler is the last of its chain. Otherwise
            it returns None.
        accept: called with each token that is chosen, by whatever sampler.
        reset: called by ``chain.reset()``.
        clone: called by ``chain.clone()``; returns a new ``custom`` sampler in the same state. Without it the clone shares
            ``apply``, which is refused where there is an ``accept`` or ``reset``, that is, a state.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")
    functions: dict[str, object] = {"apply": apply, "accept": accept, "reset": reset, "clone": clone}
    for key, function in functions.items():
        if not callable(function) and (function is not None or key == "apply"):
            raise TypeError(f"{key} must be callable, not {type(function).__name__}")
    made = Custom(name, apply, bool(selects), accept, reset, clone)
    return Sampler("custom", made.new(), custom=made)


TABLE["grammar"] = Kind("grammar", {}, needs_vocab=True)  # made by Grammar.sampler

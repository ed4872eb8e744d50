"""The samplers, from logits to a token (``llama_sampler_init_*``). ``offgrid_llama.samplers`` is this module.

Each function makes one of llama.h's samplers, and its declaration is a row of ``TABLE``: the ranges stand in the decorator,
types and defaults in the signature. A ``SamplerChain`` applies samplers in order; ``SamplingParams`` makes the usual chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import SamplerError
from offgrid_llama.native.check import INT32_MAX, callback, number, real
from offgrid_llama.native.kinds import texts

from .custom import Callbacks, CustomSampler
from .sampler import AMOUNT, ANY, COUNT, LAST_N, MAX_FLOAT, SEED, SHARE, TABLE, Argument, Kind, Sampler, declared

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

    from .custom import Apply

__all__ = [
    "TABLE", "Argument", "Kind", "Sampler", "adaptive_p", "custom", "dist", "dry", "greedy", "infill", "logit_bias",
    "min_p", "mirostat", "mirostat_v2", "penalties", "temp", "temp_ext", "top_k", "top_n_sigma", "top_p", "typical", "xtc",
]  # fmt: skip


@declared(selects=True)
def greedy() -> Sampler:
    """Select the token with the largest logit."""
    return Sampler("greedy", lib.llama_sampler_init_greedy())


@declared(selects=True, seed=SEED)
def dist(seed: int | None = None) -> Sampler:
    """Select at random by probability. ``seed`` is 0 to 2**32 - 2; None is a random one."""
    return Sampler("dist", lib.llama_sampler_init_dist(seed))


@declared(truncates=True, k=COUNT)
def top_k(k: int = 40) -> Sampler:
    """Keep the ``k`` most probable tokens; 0 keeps all."""
    return Sampler("top-k", lib.llama_sampler_init_top_k(k), max_candidates=k or None)


@declared(truncates=True, p=SHARE, min_keep=COUNT)
def top_p(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the most probable tokens that sum up to ``p``, 0 to 1 (nucleus, arXiv:1904.09751), at least ``min_keep``."""
    return Sampler("top-p", lib.llama_sampler_init_top_p(p, min_keep))


@declared(truncates=True, p=SHARE, min_keep=COUNT)
def min_p(p: float = 0.05, min_keep: int = 1) -> Sampler:
    """Keep tokens at least ``p`` times, 0 to 1, as probable as the most probable one (arXiv:2407.01082)."""
    return Sampler("min-p", lib.llama_sampler_init_min_p(p, min_keep))


@declared(truncates=True, p=SHARE, min_keep=COUNT)
def typical(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the locally typical tokens up to a mass of ``p``, 0 to 1 (arXiv:2202.00666)."""
    return Sampler("typical", lib.llama_sampler_init_typical(p, min_keep))


@declared(temperature=AMOUNT)
def temp(temperature: float = 0.8) -> Sampler:
    """Divide the logits by ``temperature``; 0 leaves the largest only."""
    return Sampler("temp", lib.llama_sampler_init_temp(temperature))


@declared(temperature=AMOUNT, delta=AMOUNT, exponent=AMOUNT)
def temp_ext(temperature: float = 0.8, delta: float = 0.0, exponent: float = 1.0) -> Sampler:
    """Choose the temperature within ``temperature`` +- ``delta`` by entropy (arXiv:2309.02772)."""
    return Sampler("temp-ext", lib.llama_sampler_init_temp_ext(temperature, delta, exponent))


@declared(truncates=True, probability=SHARE, threshold=SHARE, min_keep=COUNT, seed=SEED)
def xtc(probability: float = 0.5, threshold: float = 0.1, min_keep: int = 1, seed: int | None = None) -> Sampler:
    """With ``probability``, drop all tokens above ``threshold`` but the least probable of them (XTC)."""
    return Sampler("xtc", lib.llama_sampler_init_xtc(probability, threshold, min_keep, seed))


@declared(truncates=True, n=AMOUNT)
def top_n_sigma(n: float = 1.0) -> Sampler:
    """Keep tokens within ``n`` standard deviations of the largest logit (arXiv:2411.07641); 0 keeps all."""
    return Sampler("top-n-sigma", lib.llama_sampler_init_top_n_sigma(n))


@declared(selects=True, seed=SEED, tau=AMOUNT, eta=AMOUNT, m=Argument(int, 2, INT32_MAX))
def mirostat(vocab: Vocab, seed: int | None = None, tau: float = 5.0, eta: float = 0.1, m: int = 100) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 1.0, arXiv:2007.14966).

    ``m``, 2 to all tokens, is the number of most probable tokens from which it estimates the shape of the distribution.
    """
    m = number("m", m, 2, vocab.n_tokens)
    return Sampler("mirostat", lib.llama_sampler_init_mirostat(vocab.n_tokens, seed, tau, eta, m), vocab)


@declared(selects=True, seed=SEED, tau=AMOUNT, eta=AMOUNT)
def mirostat_v2(seed: int | None = None, tau: float = 5.0, eta: float = 0.1) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 2.0, arXiv:2007.14966)."""
    return Sampler("mirostat-v2", lib.llama_sampler_init_mirostat_v2(seed, tau, eta))


@declared(last_n=LAST_N, repeat=Argument(float, 1e-6, MAX_FLOAT), freq=ANY, present=ANY)
def penalties(vocab: Vocab, last_n: int = 64, repeat: float = 1.0, freq: float = 0.0, present: float = 0.0) -> Sampler:
    """Make the last ``last_n`` tokens (0 to 2**20) less probable.

    ``repeat`` divides their logits (above 0, 1.0 is off); ``freq`` for each occurrence, and ``present`` once, is subtracted.
    """
    ptr = lib.llama_sampler_init_penalties(vocab.n_tokens, last_n, repeat, freq, present)
    return Sampler("penalties", ptr, vocab)


@declared(multiplier=AMOUNT, base=Argument(float, 1, MAX_FLOAT), allowed_length=COUNT, last_n=LAST_N)
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
    with vocab.handle:
        ptr = lib.llama_sampler_init_dry(
            vocab.ptr, multiplier, base, allowed_length, last_n, ffi.new("const char *[]", texts), len(texts)
        )
        return Sampler("dry", ptr, vocab)


def breaker_strings(breakers: Iterable[str], name: str = "breakers") -> tuple[str, ...]:
    """Return the strings that end a repetition, checked; ``name`` is the argument's name in errors."""
    strings = texts(name, breakers)
    if len(strings) > 256:
        raise ValueError(f"{name} must be at most 256 strings, not {len(strings)}")
    return strings


@declared(selects=True, target=SHARE, decay=Argument(float, 0, 0.99), seed=SEED)
def adaptive_p(target: float = 0.5, decay: float = 0.9, seed: int | None = None) -> Sampler:
    """Select tokens near a ``target`` probability, 0 to 1, that adapts with ``decay``, 0 to 0.99.

    A clone begins its random numbers anew, for llama.cpp does not copy them.
    """
    return Sampler("adaptive-p", lib.llama_sampler_init_adaptive_p(target, decay, seed))


@declared()
def logit_bias(vocab: Vocab, bias: Mapping[int, float]) -> Sampler:
    """Add ``bias[token]`` to the logits of tokens; ``-inf`` forbids a token."""
    checked = check_bias(bias, vocab.n_tokens)
    entries = ffi.new("llama_logit_bias[]", [{"token": token, "bias": value} for token, value in checked.items()])
    return Sampler("logit-bias", lib.llama_sampler_init_logit_bias(vocab.n_tokens, len(checked), entries), vocab)


def check_bias(bias: Mapping[int, float], n_tokens: int = INT32_MAX, name: str = "bias") -> dict[int, float]:
    """Return ``bias`` as ints and floats, checked; ``name`` is the argument's name in errors."""
    return {
        number(f"{name} token", token, 0, n_tokens - 1): value
        if value == -float("inf")
        else real(f"{name}[{token}]", value, -MAX_FLOAT, MAX_FLOAT)
        for token, value in bias.items()
    }


@declared(truncates=True)
def infill(vocab: Vocab) -> Sampler:
    """For fill-in-the-middle, after top-k and top-p: merge tokens with a common prefix, end where that is likely.

    A chain takes it only after a ``top_k`` of at most 1,000, because it compares each candidate with every other.
    """
    if vocab.eot is None and vocab.eos is None:
        raise SamplerError(f"infill needs a token that ends the text, and {vocab.handle.name} has none")
    with vocab.handle:
        return Sampler("infill", lib.llama_sampler_init_infill(vocab.ptr), vocab)


@declared()
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

    An exception of these functions comes out of ``chain.sample`` (or ``accept``, ``reset``, ``clone``); the chain stays
    usable. The functions cannot use the chain, nor the context, that they are called for.

    Args:
        apply: called as ``apply(ids, logits)`` for each token, with the candidates that the samplers before it leave:
            ``ids``, int32[n], and ``logits``, float32[n], in any order. Changes to ``logits`` are taken over when it
            returns; -inf forbids a token. Both are copies that you may keep.
        name: its name in ``chain.names`` and errors.
        selects: ``apply`` returns the selected token, one of ``ids``; the sampler is the last of its chain. Otherwise
            ``apply`` returns None.
        accept: called with each chosen token, whichever sampler chose it.
        reset: called by ``chain.reset()``.
        clone: called by ``chain.clone()``; returns a new ``custom`` sampler in the same state. Without it the clone shares
            ``apply``; that is refused for a sampler with ``accept`` or ``reset``, which has a state.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")
    functions: dict[str, object] = {"apply": apply, "accept": accept, "reset": reset, "clone": clone}
    for key, function in functions.items():
        if function is not None or key == "apply":
            callback(key, function)
    return CustomSampler(Callbacks(name, apply, bool(selects), accept, reset, clone))


TABLE["grammar"] = Kind("grammar", {}, needs_vocab=True)  # Grammar.sampler makes it

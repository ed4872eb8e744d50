"""Samplers: from logits to a token (``llama_sampler``). ``offgrid_llama.samplers`` is this module.

A chain applies its samplers in order. Samplers that select (``greedy``, ``dist``, ``mirostat``, ``mirostat_v2``,
``adaptive_p``) come last, and only one of them; ``grammar`` comes before samplers that throw tokens away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._callbacks import forget_log, recent_log
from ._capi import ffi, lib
from ._check import not_null, number, raise_caught, real, text_of
from ._handle import Handle, Owner
from .backend import start
from .errors import GrammarError, NativeError, SamplerError

if TYPE_CHECKING:
    from .context import Context
    from .vocab import Vocab

__all__ = [
    "Sampler", "SamplerChain", "adaptive_p", "dist", "dry", "greedy", "infill", "logit_bias", "min_p", "mirostat",
    "mirostat_v2", "penalties", "temp", "temp_ext", "top_k", "top_n_sigma", "top_p", "typical", "xtc",
]  # fmt: skip

SELECTING = frozenset({"greedy", "dist", "mirostat", "mirostat-v2", "adaptive-p"})
TRUNCATING = frozenset({"top-k", "top-p", "min-p", "typical", "xtc", "top-n-sigma", "infill"})
MAX_LAST_N = 2**20
MAX_CANDIDATES = 2**31
MAX_INFILL_CANDIDATES = 1000
DEFAULT_SEED = 0xFFFFFFFF
"""llama.h's LLAMA_DEFAULT_SEED: a random one."""


class Sampler(Owner):
    """One sampler, from a function of this module or from ``Grammar.sampler``. ``chain.add`` takes it for keeps.

    Attributes:
        name: llama.cpp's name, for instance ``top-k``.
    """

    def __init__(self, handle: Handle, name: str, vocab: Vocab | None = None) -> None:
        self.name = name
        self._vocab = vocab
        self._at_most = MAX_CANDIDATES  # tokens that it leaves
        self._own(handle)


def _make(name: str, ptr: Any, vocab: Vocab | None = None) -> Sampler:
    failure = lambda log: SamplerError(f"the sampler {name} could not be made", log=log)  # noqa: E731
    ptr = not_null(ptr, failure, lib.llama_sampler_free)
    parents = (vocab._handle,) if vocab is not None else ()
    return Sampler(Handle(f"sampler {name}", ptr, lib.llama_sampler_free, *parents, exclusive=True), name, vocab)


def _seed(seed: int | None) -> int:
    return DEFAULT_SEED if seed is None else number("seed", seed, 0, DEFAULT_SEED - 1)


def greedy() -> Sampler:
    """Select the token with the largest logit."""
    return _make("greedy", lib.llama_sampler_init_greedy())


def dist(seed: int | None = None) -> Sampler:
    """Select at random by probability. ``seed`` is 0 to 2**32 - 2; None is a random one."""
    return _make("dist", lib.llama_sampler_init_dist(_seed(seed)))


def top_k(k: int = 40) -> Sampler:
    """Keep the ``k`` most probable tokens; 0 keeps all."""
    sampler = _make("top-k", lib.llama_sampler_init_top_k(number("k", k, 0)))
    sampler._at_most = k or MAX_CANDIDATES
    return sampler


def top_p(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the most probable tokens that sum up to ``p``, 0 to 1 (nucleus, arXiv:1904.09751), at least ``min_keep``."""
    return _make("top-p", lib.llama_sampler_init_top_p(real("p", p, 0, 1), number("min_keep", min_keep, 0)))


def min_p(p: float = 0.05, min_keep: int = 1) -> Sampler:
    """Keep tokens at least ``p`` times, 0 to 1, as probable as the most probable one (arXiv:2407.01082)."""
    return _make("min-p", lib.llama_sampler_init_min_p(real("p", p, 0, 1), number("min_keep", min_keep, 0)))


def typical(p: float = 0.95, min_keep: int = 1) -> Sampler:
    """Keep the locally typical tokens up to a mass of ``p``, 0 to 1 (arXiv:2202.00666)."""
    return _make("typical", lib.llama_sampler_init_typical(real("p", p, 0, 1), number("min_keep", min_keep, 0)))


def temp(temperature: float = 0.8) -> Sampler:
    """Divide the logits by ``temperature``; 0 leaves the largest only."""
    return _make("temp", lib.llama_sampler_init_temp(real("temperature", temperature, 0)))


def temp_ext(temperature: float = 0.8, delta: float = 0.0, exponent: float = 1.0) -> Sampler:
    """Choose the temperature within ``temperature`` +- ``delta`` by entropy (arXiv:2309.02772)."""
    values = real("temperature", temperature, 0), real("delta", delta, 0), real("exponent", exponent, 0)
    return _make("temp-ext", lib.llama_sampler_init_temp_ext(*values))


def xtc(probability: float = 0.5, threshold: float = 0.1, min_keep: int = 1, seed: int | None = None) -> Sampler:
    """With ``probability``, drop all tokens above ``threshold`` but the least probable of them (XTC)."""
    ptr = lib.llama_sampler_init_xtc(
        real("probability", probability, 0, 1),
        real("threshold", threshold, 0, 1),
        number("min_keep", min_keep, 0),
        _seed(seed),
    )
    return _make("xtc", ptr)


def top_n_sigma(n: float = 1.0) -> Sampler:
    """Keep tokens within ``n`` standard deviations of the largest logit (arXiv:2411.07641)."""
    return _make("top-n-sigma", lib.llama_sampler_init_top_n_sigma(real("n", n, 0)))


def mirostat(vocab: Vocab, seed: int | None = None, tau: float = 5.0, eta: float = 0.1, m: int = 100) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 1.0, arXiv:2007.14966)."""
    ptr = lib.llama_sampler_init_mirostat(
        vocab.n_tokens, _seed(seed), real("tau", tau, 0), real("eta", eta, 0), number("m", m, 2, vocab.n_tokens)
    )
    return _make("mirostat", ptr, vocab)


def mirostat_v2(seed: int | None = None, tau: float = 5.0, eta: float = 0.1) -> Sampler:
    """Select with a surprise held near ``tau``, learning at rate ``eta`` (Mirostat 2.0, arXiv:2007.14966)."""
    return _make(
        "mirostat-v2", lib.llama_sampler_init_mirostat_v2(_seed(seed), real("tau", tau, 0), real("eta", eta, 0))
    )


def penalties(vocab: Vocab, last_n: int = 64, repeat: float = 1.0, freq: float = 0.0, present: float = 0.0) -> Sampler:
    """Make the last ``last_n`` tokens (0 to 2**20) less probable.

    ``repeat`` divides their logits (above 0, 1.0 is off); ``freq`` for each occurrence, and ``present`` once, is subtracted.
    """
    ptr = lib.llama_sampler_init_penalties(
        vocab.n_tokens, number("last_n", last_n, 0, MAX_LAST_N), real("repeat", repeat, 1e-6),
        real("freq", freq), real("present", present),
    )  # fmt: skip
    return _make("penalties", ptr, vocab)


def dry(
    vocab: Vocab,
    multiplier: float = 0.8,
    base: float = 1.75,
    allowed_length: int = 2,
    last_n: int = 1024,
    breakers: Iterable[str] = ("\n", ":", '"', "*"),
) -> Sampler:
    """Penalise tokens that would go on with a repetition longer than ``allowed_length`` tokens (DRY).

    The penalty is ``multiplier * base ** (length - allowed_length)``; repetitions end at the strings in ``breakers``.
    """
    strings = [breakers] if isinstance(breakers, str) else list(breakers)
    for i, string in enumerate(strings):
        if not isinstance(string, str):
            raise TypeError(f"breakers[{i}] must be str, not {type(string).__name__}")
    texts = [ffi.new("char[]", text.encode("utf-8")) for text in strings]  # copied by llama.cpp before it returns
    if len(texts) > 256:
        raise ValueError(f"breakers must be at most 256 strings, not {len(texts)}")
    with vocab._handle:
        ptr = lib.llama_sampler_init_dry(
            vocab._ptr, real("multiplier", multiplier, 0), real("base", base, 1),
            number("allowed_length", allowed_length, 0), number("last_n", last_n, 0, MAX_LAST_N),
            ffi.new("const char *[]", texts), len(texts),
        )  # fmt: skip
        return _make("dry", ptr, vocab)


def adaptive_p(target: float = 0.5, decay: float = 0.9, seed: int | None = None) -> Sampler:
    """Select tokens near a ``target`` probability, 0 to 1, that adapts with ``decay``, 0 to 0.99."""
    ptr = lib.llama_sampler_init_adaptive_p(real("target", target, 0, 1), real("decay", decay, 0, 0.99), _seed(seed))
    return _make("adaptive-p", ptr)


def logit_bias(vocab: Vocab, bias: Mapping[int, float]) -> Sampler:
    """Add ``bias[token]`` to the logits of tokens; ``-inf`` forbids a token."""
    entries = [
        {"token": number("bias token", token, 0, vocab.n_tokens - 1), "bias": _bias(token, value)}
        for token, value in bias.items()
    ]
    ptr = lib.llama_sampler_init_logit_bias(vocab.n_tokens, len(entries), ffi.new("llama_logit_bias[]", entries))
    return _make("logit-bias", ptr, vocab)


def _bias(token: int, value: float) -> float:
    return value if value == -float("inf") else real(f"bias[{token}]", value)


def infill(vocab: Vocab) -> Sampler:
    """For fill-in-the-middle, after top-k and top-p: merge tokens with a common prefix, end where that is likely.

    A chain takes it only after a ``top_k`` of at most 1,000: it compares each candidate with each.
    """
    if vocab.eot is None and vocab.eos is None:
        raise SamplerError(f"infill needs a token that ends the text, and {vocab._handle.name} has none")
    with vocab._handle:
        return _make("infill", lib.llama_sampler_init_infill(vocab._ptr), vocab)


class SamplerChain(Owner):
    """Samplers in the order of application (``llama_sampler_chain``).

    Args:
        samplers: the chain takes each for keeps, as ``add`` does.
    """

    def __init__(self, samplers: Iterable[Sampler] = ()) -> None:
        start()
        self._begin(lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()), [], {}, None)
        taken = list(samplers)
        try:
            for sampler in taken:
                self.add(sampler)
        except BaseException:
            for sampler in taken:  # the caller may have no other name for them
                if isinstance(sampler, Sampler):
                    sampler.close()
            self.close()
            raise

    def _begin(self, ptr: Any, names: list[str], grammars: dict[int, Any], vocab: Vocab | None) -> None:
        failure = lambda log: SamplerError("the sampler chain could not be made", log=log)  # noqa: E731
        ptr = not_null(ptr, failure, lib.llama_sampler_free)
        parents = (vocab._handle,) if vocab is not None else ()
        self._own(Handle("SamplerChain", ptr, lib.llama_sampler_free, *parents, exclusive=True))
        self._names = names
        self._grammars = grammars  # index in the chain -> pointer, freed by the chain
        self._vocab = vocab
        self._poison = ""
        self._at_most = MAX_CANDIDATES

    @property
    def names(self) -> tuple[str, ...]:
        """llama.cpp's names of the samplers, in order."""
        return tuple(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<SamplerChain {' > '.join(self._names) or '(empty)'}{' (closed)' if self.closed else ''}>"

    def add(self, sampler: Sampler) -> None:
        """Append a sampler and take it for keeps: it is closed for everybody else (``llama_sampler_chain_add``)."""
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must be a Sampler, not {type(sampler).__name__}")
        self._handle.check_open()
        if self._names and self._names[-1] in SELECTING:
            raise ValueError(f"{self._names[-1]} selects the token and must stay last; {sampler.name} cannot follow it")
        if sampler.name == "grammar" and (early := [name for name in self._names if name in TRUNCATING]):
            raise ValueError(
                f"the grammar must come before {early[0]}, which may throw away all that the grammar allows"
            )
        if {"grammar", "infill"} <= {sampler.name, *self._names}:
            raise ValueError("infill ends the text also where the grammar does not allow it: use one of the two")
        if sampler.name == "infill" and self._at_most > MAX_INFILL_CANDIDATES:
            raise ValueError(
                f"infill compares each candidate with each: put a top_k of at most {MAX_INFILL_CANDIDATES:,} before it"
            )
        vocab = sampler._vocab
        if vocab is not None and self._vocab is not None and vocab._handle is not self._vocab._handle:
            raise ValueError(f"{sampler.name} is for {vocab._handle.name}, the chain for {self._vocab._handle.name}")
        with self._handle as chain:
            sampler._handle.check_open()
            if vocab is not None and self._vocab is None:
                self._handle.adopt(vocab._handle)
                self._vocab = vocab
            ptr = sampler._handle.consume("was given to a SamplerChain")
            sampler._finalizer.detach()
            lib.llama_sampler_chain_add(chain, ptr)
            if sampler.name == "grammar":
                self._grammars[len(self._names)] = ptr
            self._names.append(sampler.name)
            self._at_most = min(self._at_most, sampler._at_most)

    def sample(self, context: Context, row: int) -> int:
        """Choose a token for a row of the context's last decode and accept it (``llama_sampler_sample``).

        Raises:
            ValueError: the row has no logits, or the chain ends without a sampler that selects.
            GrammarError: the grammar and the other samplers leave no token; the chain is as it was before.
            SamplerError: no token was selected.
        """
        if self._names == ["greedy"]:  # which has no state
            self._handle.check_open()
            token = context.argmax(row)
            if token >= 0:
                return token
            raise self._failure(token)
        if not self._names or self._names[-1] not in SELECTING:
            raise ValueError(
                f"the chain must end with one of {', '.join(sorted(SELECTING))}; it is {list(self._names)}"
            )
        vocab = context.model.vocab
        if self._vocab is not None and self._vocab._handle is not vocab._handle:
            raise ValueError(f"the chain is for {self._vocab._handle.name}, the context for {vocab._handle.name}")
        with self._handle as chain:
            self._refuse_poison()
            forget_log()
            with context._handle as ptr:
                logits = lib.llama_get_logits_ith(ptr, context._readable(row))
                token = lib.og_sample(chain, logits, vocab.n_tokens)
            if token >= 0:
                return int(token)
            raise self._failure(token)

    def accept(self, token: int) -> None:
        """Tell the samplers that ``token`` was chosen (``llama_sampler_accept``); ``sample`` has done so for its own.

        Raises GrammarError for a token that the grammar does not allow; the chain is as it was before.
        """
        token = number("token", token, 0, *([self._vocab.n_tokens - 1] if self._vocab is not None else []))
        with self._handle as chain:
            self._refuse_poison()
            forget_log()
            for grammar in self._grammars.values():
                # llama.cpp aborts the process for a token that ends the text too early.
                allowed = lib.og_allows(grammar, token)
                if allowed != 1:
                    raise self._failure(lib.OG_REFUSED if allowed == 0 else allowed, token)
            lib.llama_sampler_accept(chain, token)
            if lib.og_caught_function():
                raise self._failure(lib.OG_THREW, token)

    def reset(self) -> None:
        """Forget all tokens accepted so far, and start the random sequences anew (``llama_sampler_reset``)."""
        with self._handle as chain:
            lib.llama_sampler_reset(chain)
            raise_caught()
            self._poison = ""

    def clone(self) -> SamplerChain:
        """Return a chain of its own in the same state (``llama_sampler_clone``)."""
        with self._handle as chain:
            self._refuse_poison()
            copy = SamplerChain.__new__(SamplerChain)
            ptr = lib.llama_sampler_clone(chain)
            raise_caught()
            grammars = {index: lib.llama_sampler_chain_get(ptr, index) for index in self._grammars}
            copy._begin(ptr, list(self._names), grammars, self._vocab)
            copy._at_most = self._at_most
            return copy

    @property
    def seed(self) -> int | None:
        """The seed of the sampler that selects, or None where it has none (``llama_sampler_get_seed``)."""
        with self._handle as chain:
            last = lib.llama_sampler_chain_get(chain, len(self._names) - 1) if self._names else None
            seed = lib.llama_sampler_get_seed(last) if last else DEFAULT_SEED
            return None if seed == DEFAULT_SEED else int(seed)

    def _refuse_poison(self) -> None:
        if self._poison:
            raise GrammarError(f"the chain failed before ({self._poison}) and its state is unknown; reset() or drop it")

    def _failure(self, code: int, token: int | None = None) -> GrammarError | SamplerError:
        what = f"token {token}" if token is not None else "every token that the other samplers leave"
        if code == lib.OG_THREW:
            self._poison = text_of(lib.og_caught_what())
            try:
                raise_caught()
            except NativeError as error:
                kind = GrammarError if self._grammars else SamplerError
                failure = kind(f"the chain {self.names} failed: {error.what}", log=error.log)
                failure.__cause__ = error
                return failure
        if code == lib.OG_REFUSED and self._grammars:
            return GrammarError(f"the grammar does not allow {what}", log=recent_log())
        return SamplerError(f"the chain {self.names} selected no token", log=recent_log())

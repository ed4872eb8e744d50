"""SamplerChain: samplers in the order of application (``llama_sampler_chain``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ._callbacks import forget_log, pending, raise_pending, recent_log
from ._capi import ffi, lib
from ._check import not_null, number, raise_caught, text_of
from ._handle import Handle, Owner
from .backend import start
from .errors import GrammarError, NativeError, SamplerError
from .perf import SamplerPerf
from .sampling import DEFAULT_SEED, MAX_CANDIDATES, TABLE, Sampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .context import Context
    from .vocab import Vocab

__all__ = ["SamplerChain", "row_of"]

SELECTING = sorted(kind.name for kind in TABLE.values() if kind.selects)
MAX_INFILL_CANDIDATES = 1000


class SamplerChain(Owner):
    """Samplers in the order of application (``llama_sampler_chain``).

    A sampler that selects comes last, and only one of them; ``grammar`` and ``logit_bias`` come before samplers that throw
    tokens away.

    Args:
        samplers: the chain takes each for keeps, as ``add`` does.
        no_perf: False measures time for ``perf()``.
    """

    def __init__(self, samplers: Iterable[Sampler] = (), *, no_perf: bool = True) -> None:
        if not isinstance(no_perf, bool):
            raise TypeError(f"no_perf must be True or False, not {type(no_perf).__name__}")
        rest = iter(samplers)
        start()
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = no_perf
        ptr = _made(lib.llama_sampler_chain_init(params))
        self._own(Handle("SamplerChain", ptr, lib.llama_sampler_free, exclusive=True))
        self._samplers: list[Sampler] = []  # given away, for what is known of them; they hold what C calls
        self._vocab: Vocab | None = None
        self._greedy = False  # whether that is all
        self._poison = ""
        self._no_perf = no_perf
        self._argmax_seconds, self._n_argmax = 0.0, 0  # what llama.cpp does not see
        sampler: Any = None
        try:
            for sampler in rest:
                self.add(sampler)
        except BaseException:
            for left in (sampler, *rest):  # the caller may have no other name for them
                if isinstance(left, Sampler):
                    left.close()
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the samplers, in order: llama.cpp's, and those of custom ones."""
        return tuple(sampler.name for sampler in self._samplers)

    def __len__(self) -> int:
        return len(self._samplers)

    def __repr__(self) -> str:
        return f"<SamplerChain {' > '.join(self.names) or '(empty)'}{' (closed)' if self.closed else ''}>"

    def add(self, sampler: Sampler) -> None:
        """Append a sampler and take it for keeps: it is closed for everybody else (``llama_sampler_chain_add``)."""
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must be a Sampler, not {type(sampler).__name__}")
        self._handle.check_open()
        vocab = sampler._vocab
        if vocab is not None and self._vocab is not None and vocab._handle is not self._vocab._handle:
            raise ValueError(f"{sampler.name} is for {vocab._handle.name}, the chain for {self._vocab._handle.name}")
        with self._handle as chain:
            sampler._handle.check_open()
            _refuse_order([*self._samplers, sampler])
            if vocab is not None and self._vocab is None:
                self._handle.adopt(vocab._handle)
                self._vocab = vocab
            guard = _made(lib.llama_sampler_init(ffi.addressof(lib, "og_guard"), ffi.NULL)) if sampler.selects else None
            ptr = sampler._handle.consume("was given to a SamplerChain")
            sampler._finalizer.detach()
            if guard is not None:
                lib.llama_sampler_chain_add(chain, guard)
            lib.llama_sampler_chain_add(chain, ptr)
            self._set([*self._samplers, sampler])

    def remove(self, index: int) -> Sampler:
        """Take the sampler at ``index`` out of the chain, and return it to an owner (``llama_sampler_chain_remove``).

        Raises ValueError for an index that there is not, and where the rest would be no chain.
        """
        with self._handle as chain:
            self._refuse_poison()
            index = number("index", index, 0, len(self._samplers) - 1)
            rest = self._samplers[:index] + self._samplers[index + 1 :]
            _refuse_order(rest)
            removed = self._samplers[index]
            self._set(rest)
            if removed.selects:
                lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, index))  # its guard
            return removed._again(lib.llama_sampler_chain_remove(chain, index))

    def _set(self, samplers: list[Sampler]) -> None:
        self._samplers = samplers
        self._greedy = [sampler.kind.name for sampler in samplers] == ["greedy"]

    def _at(self, chain: Any, index: int) -> Any:
        """Return the ``llama_sampler *`` of the sampler at ``index``; before one that selects there is its guard."""
        return lib.llama_sampler_chain_get(chain, index + self._samplers[index].selects)

    def sample(self, context: Context, row: int) -> int:
        """Choose a token for a row of the context's last decode and accept it (``llama_sampler_sample``).

        A logit that is NaN counts as -inf, one of more than 1e30 as 1e30.

        Raises:
            ValueError: the row has no logits, or the chain ends without a sampler that selects.
            GrammarError: the grammar and the other samplers leave no token; the chain is as it was before.
            SamplerError: no token was selected: every one has a logit of -inf, or samplers made one too large.
            Exception: whatever a custom sampler raises. After its ``apply`` no token is accepted; after its ``accept`` the
                other samplers have accepted it.
        """
        if self._greedy:  # which has no state
            self._handle.check_open()
            token = context.argmax(row) if self._no_perf else self._timed_argmax(context, row)
            if token >= 0:
                return token
            raise self._failure(token)
        if not self._samplers or not self._samplers[-1].selects:
            raise ValueError(f"the chain must end with one of {', '.join(SELECTING)}; it is {list(self.names)}")
        vocab = context.model.vocab
        if self._vocab is not None and self._vocab._handle is not vocab._handle:
            raise ValueError(f"the chain is for {self._vocab._handle.name}, the context for {vocab._handle.name}")
        with self._handle as chain:
            self._refuse_poison()
            forget_log()
            with context._handle as ptr:
                logits = lib.llama_get_logits_ith(ptr, context._readable(row))
                token = lib.og_sample(chain, logits, vocab.n_tokens)
            if pending:
                raise_pending()
            if token >= 0:
                return int(token)
            raise self._failure(token)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token for a row of logits that you have, float32[n_vocab], writable, and accept it.

        Raises ValueError for another shape or dtype, and otherwise as ``sample`` does.
        """
        if not self._samplers or not self._samplers[-1].selects:
            raise ValueError(f"the chain must end with one of {', '.join(SELECTING)}; it is {list(self.names)}")
        with self._handle as chain:
            self._refuse_poison()
            forget_log()
            token = int(lib.og_sample(chain, row_of(logits, self._vocab), logits.size))
            if pending:
                raise_pending()
            if token >= 0:
                return token
            raise self._failure(token)

    def _timed_argmax(self, context: Context, row: int) -> int:
        begin = perf_counter()
        token = context.argmax(row)
        self._argmax_seconds += perf_counter() - begin
        self._n_argmax += token >= 0
        return token

    def accept(self, token: int) -> None:
        """Tell the samplers that ``token`` was chosen (``llama_sampler_accept``); ``sample`` has done so for its own.

        Raises GrammarError for a token that the grammar does not allow; the chain is as it was before.
        """
        token = number("token", token, 0, *([self._vocab.n_tokens - 1] if self._vocab is not None else []))
        with self._handle as chain:
            self._refuse_poison()
            forget_log()
            for index, sampler in enumerate(self._samplers):
                if sampler.kind.name == "grammar":
                    # llama.cpp aborts the process for a token that ends the text too early.
                    allowed = lib.og_allows(self._at(chain, index), token)
                    if allowed != 1:
                        raise self._failure(lib.OG_REFUSED if allowed == 0 else allowed, token)
            lib.llama_sampler_accept(chain, token)
            if lib.og_caught_function():
                raise self._failure(lib.OG_THREW, token)
            raise_pending()

    def reset(self) -> None:
        """Forget all tokens accepted so far, and start the random sequences anew (``llama_sampler_reset``)."""
        with self._handle as chain:
            lib.llama_sampler_reset(chain)
            raise_caught()
            self._poison = ""
            raise_pending()

    def clone(self) -> SamplerChain:
        """Return a chain of its own in the same state (``llama_sampler_clone`` of each sampler).

        Raises SamplerError for a custom sampler with a state that it cannot clone.
        """
        with self._handle as chain:
            self._refuse_poison()
            copies = (s._copy(self._at(chain, i)) for i, s in enumerate(self._samplers))
            return SamplerChain(copies, no_perf=self._no_perf)

    @property
    def seed(self) -> int | None:
        """The seed of the sampler that selects, or None where it has none (``llama_sampler_get_seed``)."""
        with self._handle as chain:
            last = self._at(chain, len(self._samplers) - 1) if self._samplers else None
            seed = lib.llama_sampler_get_seed(last) if last else DEFAULT_SEED
            return None if seed == DEFAULT_SEED else int(seed)

    def perf(self) -> SamplerPerf:
        """Return how long the samplers took, and for how many tokens (``llama_perf_sampler``).

        Raises SamplerError unless the chain was made with ``no_perf=False``.
        """
        with self._handle as chain:
            if self._no_perf:
                raise SamplerError("nothing was measured: make the chain with no_perf=False")
            data = lib.llama_perf_sampler(chain)
            return SamplerPerf(data.t_sample_ms + 1e3 * self._argmax_seconds, data.n_sample + self._n_argmax)

    def perf_reset(self) -> None:
        """Measure from now on (``llama_perf_sampler_reset``)."""
        with self._handle as chain:
            lib.llama_perf_sampler_reset(chain)
            self._argmax_seconds, self._n_argmax = 0.0, 0

    def _refuse_poison(self) -> None:
        if self._poison:
            raise GrammarError(f"the chain failed before ({self._poison}) and its state is unknown; reset() or drop it")

    def _failure(self, code: int, token: int | None = None) -> GrammarError | SamplerError:
        what = f"token {token}" if token is not None else "every token that the other samplers leave"
        grammar = any(sampler.kind.name == "grammar" for sampler in self._samplers)
        if code == lib.OG_THREW:
            self._poison = text_of(lib.og_caught_what())
            try:
                raise_caught()
            except NativeError as error:
                kind = GrammarError if grammar else SamplerError
                failure = kind(f"the chain {self.names} failed: {error.what}", log=error.log)
                failure.__cause__ = error
                return failure
        if code == lib.OG_REFUSED and grammar:
            return GrammarError(f"the grammar does not allow {what}", log=recent_log())
        return SamplerError(f"the chain {self.names} selected no token", log=recent_log())


def row_of(logits: npt.NDArray[np.float32], vocab: Vocab | None) -> Any:
    """Return the ``float *`` of an array of logits; raise ValueError unless it is float32[n_vocab], and writable."""
    n = None if vocab is None else vocab.n_tokens
    shape = getattr(logits, "shape", None)
    fits = (
        str(getattr(logits, "dtype", "")) == "float32" and shape is not None and len(shape) == 1 and n in (None, *shape)
    )
    if not fits or not logits.flags.c_contiguous or not logits.flags.writeable:
        raise ValueError(f"logits must be a writable array float32[{n or 'n_vocab'}], in one piece")
    return ffi.from_buffer("float[]", logits, require_writable=True)


def _made(ptr: Any) -> Any:
    failure = lambda log: SamplerError("the sampler chain could not be made", log=log)  # noqa: E731
    return not_null(ptr, failure, lib.llama_sampler_free)


_FORBIDDING = {"grammar": "the grammar", "logit-bias": "logit_bias"}
"""Samplers that change logits and leave llama.cpp to believe that the candidates are still sorted by them."""
_SORTING = frozenset({"temp-ext"})  # and those that truncate


def _refuse_order(samplers: Sequence[Sampler]) -> None:
    """Raise ValueError where llama.cpp would abort, throw or take minutes, or would not do what the samplers say."""
    kinds = [sampler.kind for sampler in samplers]
    names = [kind.name for kind in kinds]
    for sampler, following in pairwise(samplers):
        if sampler.selects:
            raise ValueError(f"{sampler.name} selects the token and must stay last; {following.name} cannot follow it")
    for name, what in _FORBIDDING.items():
        last = len(names) - 1 - names[::-1].index(name) if name in names else 0
        if early := [kind.name for kind in kinds[:last] if kind.truncates or kind.name in _SORTING]:
            raise ValueError(
                f"{what} must come before {early[0]}, which may throw away all that it allows, or sort by what it changes"
            )
    if {"grammar", "infill"} <= set(names):
        raise ValueError("infill ends the text also where the grammar does not allow it: use one of the two")
    if "infill" in names:
        before = samplers[: names.index("infill")]
        if min((sampler._at_most for sampler in before), default=MAX_CANDIDATES) > MAX_INFILL_CANDIDATES:
            raise ValueError(
                f"infill compares each candidate with each: put a top_k of at most {MAX_INFILL_CANDIDATES:,} before it"
            )

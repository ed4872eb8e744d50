"""SamplerChain: samplers in the order of application (``llama_sampler_chain``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.context.perf import SamplerPerf
from offgrid_llama.errors import GrammarError, NativeError, SamplerError
from offgrid_llama.native.backend import start
from offgrid_llama.native.callbacks import forget_log, pending, raise_pending, recent_log
from offgrid_llama.native.check import not_null, number, perf_switch, raise_caught, text_of
from offgrid_llama.native.handle import Handle, Owner

from .sampler import DEFAULT_SEED, MAX_CANDIDATES, Sampler
from .samplers import TABLE
from .token_sampler import TokenSampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.context.context import Context
    from offgrid_llama.model.vocab import Vocab

__all__ = ["SamplerChain", "row_of"]

SELECTING = sorted(kind.name for kind in TABLE.values() if kind.selects)
MAX_INFILL_CANDIDATES = 1000
_MAX_LOGIT = 1e30


class SamplerChain(Owner, TokenSampler):
    """Samplers in the order of application (``llama_sampler_chain``).

    The last sampler selects the token, and only that one; ``grammar`` and ``logit_bias`` come before samplers that drop
    tokens.

    Args:
        samplers: the chain consumes each, as ``add`` does.
        perf: measure time for ``perf()``. no_perf: the opposite of ``perf``, under its old name; deprecated.
    """

    _instead = "clone() makes another one in the same state"

    def __init__(self, samplers: Iterable[Sampler] = (), *, perf: bool = False, no_perf: bool | None = None) -> None:
        self._measures = perf_switch(perf, no_perf)
        rest = iter(samplers)
        start()
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = not self._measures
        ptr = _made(lib.llama_sampler_chain_init(params))
        self._own(Handle("SamplerChain", ptr, lib.llama_sampler_free, exclusive=True))
        self.chain_handle = self.handle
        self._samplers: list[Sampler] = []  # consumed; kept for their attributes, and for the functions that C calls
        self._vocab: Vocab | None = None
        self._greedy = False  # whether the chain is one greedy sampler
        self._poison = ""
        self._argmax_seconds, self._n_argmax = 0.0, 0  # greedy samples, which llama.cpp does not measure
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
        """Append a sampler and consume it: it is closed for all other users (``llama_sampler_chain_add``)."""
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must be a Sampler, not {type(sampler).__name__}")
        self.handle.check_open()
        vocab = sampler.vocab
        if vocab is not None and self._vocab is not None and vocab.handle is not self._vocab.handle:
            raise ValueError(f"{sampler.name} is for {vocab.handle.name}, the chain for {self._vocab.handle.name}")
        with self.handle as chain:
            sampler.handle.check_open()
            _refuse_order([*self._samplers, sampler])
            if vocab is not None and self._vocab is None:
                self.handle.adopt(vocab.handle)
                self._vocab = vocab
            guard_vtable = ffi.addressof(lib, "og_logits_guard")
            guard = _made(lib.llama_sampler_init(guard_vtable, ffi.NULL)) if sampler.selects else None
            ptr = sampler.handle.consume("was given to a SamplerChain")
            if guard is not None:
                lib.llama_sampler_chain_add(chain, guard)
            lib.llama_sampler_chain_add(chain, ptr)
            self._set([*self._samplers, sampler])

    def remove(self, index: int) -> Sampler:
        """Take the sampler at ``index`` out of the chain, and return its new owner (``llama_sampler_chain_remove``).

        Raises ValueError for an index outside the chain, and if the remaining samplers are not a valid chain.
        """
        with self.handle as chain:
            self._refuse_poison()
            index = number("index", index, 0, len(self._samplers) - 1)
            rest = self._samplers[:index] + self._samplers[index + 1 :]
            _refuse_order(rest)
            removed = self._samplers[index]
            self._set(rest)
            if removed.selects:
                lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, index))  # its guard
            return removed.owning(lib.llama_sampler_chain_remove(chain, index))

    def _set(self, samplers: list[Sampler]) -> None:
        self._samplers = samplers
        self._greedy = [sampler.kind.name for sampler in samplers] == ["greedy"]

    def _at(self, chain: Any, index: int) -> Any:
        """Return the ``llama_sampler *`` of the sampler at ``index``; one that selects has its guard before it."""
        return lib.llama_sampler_chain_get(chain, index + self._samplers[index].selects)

    def sample(self, context: Context, row: int) -> int:
        """Choose a token for a row of the context's last decode and accept it (``llama_sampler_sample``).

        A logit that is NaN counts as -inf, one of more than 1e30 as 1e30.

        Raises:
            ValueError: the row has no logits, or the chain ends without a sampler that selects.
            GrammarError: the grammar and the other samplers leave no token; the chain is unchanged.
            SamplerError: no token was selected: every one has a logit of -inf, or samplers made one too large.
            Exception: the exception of a custom sampler. After one in ``apply`` no token is accepted; after one in
                ``accept`` the other samplers have accepted the token.
        """
        if self._greedy:  # which has no state
            self.handle.check_open()
            token = self._timed_argmax(context, row) if self._measures else context.argmax(row)
            if token >= 0:
                return token
            raise self.failure(token)
        if not self._samplers or not self._samplers[-1].selects:
            raise ValueError(f"the chain must end with one of {', '.join(SELECTING)}; it is {list(self.names)}")
        vocab = context.model.vocab
        if self._vocab is not None and self._vocab.handle is not vocab.handle:
            raise ValueError(f"the chain is for {self._vocab.handle.name}, the context for {vocab.handle.name}")
        with self.handle as chain:
            self._refuse_poison()
            forget_log()
            with context.handle as ptr:
                logits = lib.llama_get_logits_ith(ptr, context.outputs.readable(row))
                token = lib.og_sample(chain, logits, vocab.n_tokens)
            if pending:
                raise_pending()
            if token >= 0:
                return int(token)
            raise self.failure(token)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token for your own row of logits, float32[n_vocab], writable, and accept it.

        Raises ValueError for another shape or dtype, and otherwise as ``sample`` does.
        """
        if not self._samplers or not self._samplers[-1].selects:
            raise ValueError(f"the chain must end with one of {', '.join(SELECTING)}; it is {list(self.names)}")
        with self.handle as chain:
            self._refuse_poison()
            forget_log()
            token = int(lib.og_sample(chain, row_of(logits, self._vocab), logits.size))
            if pending:
                raise_pending()
            if token >= 0:
                return token
            raise self.failure(token)

    def draw(self, logits: npt.NDArray[np.float32]) -> tuple[int, list[tuple[int, float]]]:
        """Choose a token as ``choose`` does; return it, and all tokens that it was drawn from, with their probabilities.

        Raises as ``choose`` does.
        """
        import numpy as np

        row_of(logits, self._vocab)
        data = np.zeros(logits.size, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"] = np.arange(logits.size)
        data["logit"] = np.minimum(np.nan_to_num(logits, nan=-np.inf, posinf=_MAX_LOGIT, neginf=-np.inf), _MAX_LOGIT)
        candidates = ffi.new(
            "llama_token_data_array *",
            {"data": ffi.from_buffer("llama_token_data[]", data), "size": logits.size, "selected": -1},
        )
        with self.handle as chain:
            self._refuse_poison()
            forget_log()
            lib.llama_sampler_apply(chain, candidates)
            if pending:
                raise_pending()
            if lib.og_caught_function():
                raise self.failure(lib.OG_THREW)
            if not 0 <= candidates.selected < candidates.size:
                raise self.failure(lib.OG_NOTHING_SELECTED)
            token = int(candidates.data[candidates.selected].id)
            left = np.frombuffer(ffi.buffer(candidates.data, candidates.size * data.itemsize), data.dtype)
            found = [(int(id_), float(p)) for id_, _, p in left[left["p"] > 0].tolist()]
            lib.llama_sampler_accept(chain, token)
        return token, found if sum(p for _, p in found) > 0.5 else [(token, 1.0)]  # greedy computes none

    def _timed_argmax(self, context: Context, row: int) -> int:
        begin = perf_counter()
        token = context.argmax(row)
        self._argmax_seconds += perf_counter() - begin
        self._n_argmax += token >= 0
        return token

    def accept(self, token: int) -> None:
        """Record ``token`` as chosen (``llama_sampler_accept``); ``sample`` does so for its own tokens.

        Raises GrammarError for a token that the grammar does not allow; the chain is unchanged.
        """
        token = number("token", token, 0, *([self._vocab.n_tokens - 1] if self._vocab is not None else []))
        with self.handle as chain:
            self._refuse_poison()
            forget_log()
            for index, sampler in enumerate(self._samplers):
                if sampler.kind.name == "grammar":
                    # llama.cpp aborts the process for a token that ends the text too early.
                    allowed = lib.og_allows(self._at(chain, index), token)
                    if allowed != 1:
                        raise self.failure(lib.OG_REFUSED if allowed == 0 else allowed, token)
            lib.llama_sampler_accept(chain, token)
            if lib.og_caught_function():
                raise self.failure(lib.OG_THREW, token)
            raise_pending()

    def reset(self) -> None:
        """Forget all accepted tokens, and restart the random sequences (``llama_sampler_reset``)."""
        with self.handle as chain:
            lib.llama_sampler_reset(chain)
            raise_caught()
            self._poison = ""
            raise_pending()

    def clone(self) -> SamplerChain:
        """Return an independent chain in the same state (``llama_sampler_clone`` of each sampler).

        Raises SamplerError for a custom sampler with a state that it cannot clone.
        """
        with self.handle as chain:
            self._refuse_poison()
            copies = (s.copy_of(self._at(chain, i)) for i, s in enumerate(self._samplers))
            return SamplerChain(copies, perf=self._measures)

    @property
    def seed(self) -> int | None:
        """The seed of the sampler that selects, or None if it has none (``llama_sampler_get_seed``)."""
        with self.handle as chain:
            last = self._at(chain, len(self._samplers) - 1) if self._samplers else None
            seed = lib.llama_sampler_get_seed(last) if last else DEFAULT_SEED
            return None if seed == DEFAULT_SEED else int(seed)

    def perf(self) -> SamplerPerf:
        """Return the time of the samplers, and the number of tokens (``llama_perf_sampler``).

        Raises SamplerError unless the chain was made with ``perf=True``.
        """
        with self.handle as chain:
            if not self._measures:
                raise SamplerError("nothing was measured: make the chain with perf=True")
            data = lib.llama_perf_sampler(chain)
            return SamplerPerf(data.t_sample_ms + 1e3 * self._argmax_seconds, data.n_sample + self._n_argmax)

    def perf_reset(self) -> None:
        """Restart the measurement (``llama_perf_sampler_reset``)."""
        with self.handle as chain:
            lib.llama_perf_sampler_reset(chain)
            self._argmax_seconds, self._n_argmax = 0.0, 0

    def _refuse_poison(self) -> None:
        if self._poison:
            raise GrammarError(f"the chain failed before ({self._poison}) and its state is unknown; reset() or drop it")

    def failure(self, code: int, token: int | None = None) -> GrammarError | SamplerError:
        """Return the error for a native code in place of a token, or for a token that is not accepted. Internal."""
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
"""Samplers that change logits, after which llama.cpp still takes the candidates for sorted."""
_SORTING = frozenset({"temp-ext"})  # and those that truncate


def _refuse_order(samplers: Sequence[Sampler]) -> None:
    """Raise ValueError where llama.cpp would abort, throw, take minutes, or not do what the samplers promise."""
    for sampler, following in pairwise(samplers):
        if sampler.selects:
            raise ValueError(f"{sampler.name} selects the token and must stay last; {following.name} cannot follow it")
    _refuse_late_forbidding(samplers)
    _refuse_infill(samplers)


def _refuse_late_forbidding(samplers: Sequence[Sampler]) -> None:
    kinds = [sampler.kind for sampler in samplers]
    names = [kind.name for kind in kinds]
    for name, what in _FORBIDDING.items():
        last = len(names) - 1 - names[::-1].index(name) if name in names else 0
        if early := [kind.name for kind in kinds[:last] if kind.truncates or kind.name in _SORTING]:
            raise ValueError(
                f"{what} must come before {early[0]}, which may throw away all that it allows, or sort by what it changes"
            )


def _refuse_infill(samplers: Sequence[Sampler]) -> None:
    names = [sampler.kind.name for sampler in samplers]
    if "infill" not in names:
        return
    if "grammar" in names:
        raise ValueError("infill ends the text also where the grammar does not allow it: use one of the two")
    before = samplers[: names.index("infill")]
    if min((sampler.max_candidates for sampler in before), default=MAX_CANDIDATES) > MAX_INFILL_CANDIDATES:
        raise ValueError(
            f"infill compares each candidate with every other: put a top_k of at most {MAX_INFILL_CANDIDATES:,} before it"
        )

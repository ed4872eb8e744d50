"""SamplingParams: the usual samplers by their usual names, in llama.cpp's usual order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from offgrid_llama.native.check import number, perf_switch
from offgrid_llama.native.kinds import mapping, texts

from . import samplers
from .chain import SamplerChain
from .grammar.grammar import Grammar
from .sampler import TABLE, Sampler

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

__all__ = ["SamplingParams"]

_ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p", "xtc", "temp_ext")
_MIROSTAT_M = 100  # llama.cpp's
_KEEP_THE_BEST = {"top_n_sigma", "top_k", "top_p", "min_p", "temp_ext"}


def _of(kind: str, argument: str, default: Any) -> Any:
    """Declare a field with the range of a sampler's argument."""
    return field(default=default, metadata={"argument": TABLE[kind].arguments[argument]})


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. Names and defaults are those of llama.cpp's server; ranges are those of ``samplers.TABLE``.

    Attributes:
        temperature: 0 is greedy: the most probable of the tokens that the other samplers leave.
        dynatemp_range, dynatemp_exponent: choose the temperature within ``temperature`` +- the range, by entropy; 0 is off.
        top_k: keep the most probable tokens; 0 is off. top_p, min_p, typical_p: see the samplers; 1, 0 and 1 are off.
        top_n_sigma: keep tokens within this many standard deviations of the largest logit; 0 is off.
        xtc_probability, xtc_threshold: see ``samplers.xtc``; a probability of 0 is off.
        min_keep: how many tokens ``top_p``, ``min_p``, ``typical`` and ``xtc`` leave at least.
        repeat_last_n: how many tokens count as repeated. repeat_penalty, frequency_penalty, presence_penalty: by how much;
            1, 0 and 0 are off.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers: see ``samplers.dry``; a
            multiplier of 0 is off.
        mirostat: 1 or 2 select with Mirostat, after the temperature alone; 0 is off. mirostat_tau, mirostat_eta: its target
            and its rate.
        adaptive_target, adaptive_decay: select with ``samplers.adaptive_p``; a target of None is off.
        logit_bias: {token: a number to add to its logit}. Tokens that the model suppresses stay suppressed.
        seed: 0 to 2**32 - 2; None is a random one.
        samplers: the samplers in their order, by their names in ``offgrid_llama.samplers``: those of the default, and
            ``infill``.
        grammar: the Grammar that constrains the text; None constrains nothing.
    """

    temperature: float = _of("temp-ext", "temperature", 0.8)
    dynatemp_range: float = _of("temp-ext", "delta", 0.0)
    dynatemp_exponent: float = _of("temp-ext", "exponent", 1.0)
    top_k: int = _of("top-k", "k", 40)
    top_p: float = _of("top-p", "p", 0.95)
    min_p: float = _of("min-p", "p", 0.05)
    typical_p: float = _of("typical", "p", 1.0)
    top_n_sigma: float = _of("top-n-sigma", "n", 0.0)
    xtc_probability: float = _of("xtc", "probability", 0.0)
    xtc_threshold: float = _of("xtc", "threshold", 0.1)
    min_keep: int = _of("top-p", "min_keep", 0)
    repeat_last_n: int = _of("penalties", "last_n", 64)
    repeat_penalty: float = _of("penalties", "repeat", 1.0)
    frequency_penalty: float = _of("penalties", "freq", 0.0)
    presence_penalty: float = _of("penalties", "present", 0.0)
    dry_multiplier: float = _of("dry", "multiplier", 0.0)
    dry_base: float = _of("dry", "base", 1.75)
    dry_allowed_length: int = _of("dry", "allowed_length", 2)
    dry_penalty_last_n: int = _of("dry", "last_n", 64)
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = _of("mirostat-v2", "tau", 5.0)
    mirostat_eta: float = _of("mirostat-v2", "eta", 0.1)
    adaptive_target: float | None = _of("adaptive-p", "target", None)
    adaptive_decay: float = _of("adaptive-p", "decay", 0.9)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = _of("dist", "seed", None)
    samplers: Sequence[str] = _ORDER
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if "argument" in each.metadata and not (value is None and each.default is None):
                self._set(each.name, each.metadata["argument"].check(each.name, value))
        number("mirostat", self.mirostat, 0, 2)
        mapping("logit_bias", self.logit_bias)
        self._set("logit_bias", samplers.check_bias(self.logit_bias, name="logit_bias"))
        breakers = samplers.breaker_strings(self.dry_sequence_breakers, "dry_sequence_breakers")
        self._set("dry_sequence_breakers", breakers)
        self._set("samplers", texts("samplers", self.samplers))
        for name in self.samplers:
            if name not in (*_ORDER, "infill"):
                raise ValueError(f"samplers must be of {', '.join(_ORDER)} and infill, not {name!r}")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise TypeError(f"grammar must be a Grammar, such as Grammar.gbnf(text), not {type(self.grammar).__name__}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for other code

    def chain(self, vocab: Vocab, *, perf: bool = False, no_perf: bool | None = None) -> SamplerChain:
        """Return a new chain for a model: the grammar, the biases, ``samplers``, and one that selects.

        Samplers that would do nothing are left out. ``perf`` is the chain's; ``no_perf``, its opposite, is deprecated.

        Raises:
            ValueError: ``logit_bias`` has a token that the model does not, or ``samplers`` are in an impossible order.
            GrammarError: the grammar does not go with the vocabulary.
        """
        return SamplerChain(self._made(vocab), perf=perf_switch(perf, no_perf))

    def _made(self, vocab: Vocab) -> Iterator[Sampler]:
        if self.grammar is not None:
            yield self.grammar.sampler(vocab, bounded=True)
        if bias := {**self.logit_bias, **dict.fromkeys(vocab.suppress_tokens(), -float("inf"))}:
            yield samplers.logit_bias(vocab, bias)
        greedy = self.temperature == 0
        if self.mirostat and not greedy:
            yield samplers.temp(self.temperature)
            yield self._mirostat(vocab)
            return
        without = _KEEP_THE_BEST if greedy and "infill" not in self.samplers else ()
        for name in self.samplers:
            if name not in without and (sampler := self._one(name, vocab)) is not None:
                yield sampler
        yield self._selecting()

    def _mirostat(self, vocab: Vocab) -> Sampler:
        if self.mirostat == 2:
            return samplers.mirostat_v2(self.seed, self.mirostat_tau, self.mirostat_eta)
        m = min(_MIROSTAT_M, vocab.n_tokens)
        return samplers.mirostat(vocab, self.seed, self.mirostat_tau, self.mirostat_eta, m)

    def _selecting(self) -> Sampler:
        """Return the sampler that selects the token."""
        if self.temperature == 0:
            return samplers.greedy()
        if self.adaptive_target is not None:
            return samplers.adaptive_p(self.adaptive_target, self.adaptive_decay, self.seed)
        return samplers.dist(self.seed)

    def _one(self, name: str, vocab: Vocab) -> Sampler | None:
        """Return one of ``samplers``, or None if it has no effect."""
        penalties = self.repeat_penalty, self.frequency_penalty, self.presence_penalty
        match name:
            case "penalties" if self.repeat_last_n and penalties != (1, 0, 0):
                return samplers.penalties(vocab, self.repeat_last_n, *penalties)
            case "dry" if self.dry_multiplier and self.dry_penalty_last_n:
                return samplers.dry(
                    vocab, self.dry_multiplier, self.dry_base, self.dry_allowed_length, self.dry_penalty_last_n,
                    self.dry_sequence_breakers,
                )  # fmt: skip
            case "top_n_sigma" if self.top_n_sigma:
                return samplers.top_n_sigma(self.top_n_sigma)
            case "top_k" if self.top_k:
                return samplers.top_k(self.top_k)
            case "typical" if self.typical_p < 1:
                return samplers.typical(self.typical_p, self.min_keep)
            case "top_p" if self.top_p < 1:
                return samplers.top_p(self.top_p, self.min_keep)
            case "min_p" if self.min_p:
                return samplers.min_p(self.min_p, self.min_keep)
            case "xtc" if self.xtc_probability:
                return samplers.xtc(self.xtc_probability, self.xtc_threshold, self.min_keep, self.seed)
            case "temp_ext" if (self.temperature, self.dynatemp_range) != (1, 0):
                return samplers.temp_ext(self.temperature, self.dynatemp_range, self.dynatemp_exponent)
            case "infill":
                return samplers.infill(vocab)
        return None

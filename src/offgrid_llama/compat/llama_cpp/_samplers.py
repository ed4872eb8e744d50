"""LlamaSampler and CustomSampler: chains of llama.cpp's samplers on the raw layer, as unguarded as that is."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from . import llama_cpp as raw

if TYPE_CHECKING:
    from .llama_grammar import LlamaGrammar

__all__ = ["CustomSampler", "LlamaSampler"]


class OfModel(Protocol):
    """A LlamaModel, as far as samplers need it."""

    vocab: int | None


class OfContext(Protocol):
    """A LlamaContext, as far as samplers need it."""

    ctx: int | None


class CustomSampler:
    """A sampler that is a function of a pointer to a ``llama_token_data_array``, which it changes in place.

    An exception in the function cannot leave llama.cpp: ctypes prints it, and the candidates stay as they are by then.
    """

    def __init__(self, apply_func: Callable[[Any], None]) -> None:
        self.apply_func = apply_func
        callbacks = raw.llama_sampler_i()
        callbacks.apply = raw.llama_sampler_i_apply(lambda _sampler, candidates: apply_func(candidates))
        self._callbacks = callbacks  # llama.cpp has its address
        self.sampler = raw.llama_sampler()
        self.sampler.iface = ctypes.pointer(callbacks)
        self.sampler.ctx = None

    def get_sampler(self) -> Any:
        """Return a pointer to its ``llama_sampler``, which lives as long as this object."""
        return ctypes.pointer(self.sampler)


def _adds(function: str, *names: str) -> Callable[..., None]:
    """Return a method that adds what a function of the raw layer makes of its arguments, which have these names."""

    def method(self: LlamaSampler, *arguments: Any, **named: Any) -> None:
        given = {**dict(zip(names, arguments, strict=False)), **named}
        if given.keys() != set(names) or len(arguments) + len(named) != len(names):
            raise TypeError(f"{function} takes {', '.join(names) or 'no arguments'}")
        self._add(getattr(raw, function)(*(given[name] for name in names)))

    method.__name__ = function
    method.__doc__ = f"Add a sampler of ``{function}``."
    return method


class LlamaSampler:
    """A chain of samplers.

    Attributes:
        sampler: the pointer, as int; None after ``close()``. custom_samplers: (index, CustomSampler) of its own ones.
    """

    def __init__(self) -> None:
        self.sampler: Any = raw.llama_sampler_chain_init(raw.llama_sampler_chain_default_params())
        self.custom_samplers: list[tuple[int, CustomSampler]] = []

    def close(self) -> None:
        """Free the chain and its samplers, but for those that are functions."""
        sampler, self.sampler = getattr(self, "sampler", None), None
        if sampler is None:
            return
        for index, _ in reversed(self.custom_samplers):
            raw.llama_sampler_chain_remove(sampler, index)  # Python's memory, which llama.cpp must not free
        raw.llama_sampler_free(sampler)

    def __del__(self) -> None:
        self.close()

    def _add(self, sampler: Any) -> None:
        if not sampler:
            raise ValueError("llama.cpp refuses the sampler's arguments")
        raw.llama_sampler_chain_add(self.sampler, sampler)

    add_greedy = _adds("llama_sampler_init_greedy")
    add_dist = _adds("llama_sampler_init_dist", "seed")
    add_top_k = _adds("llama_sampler_init_top_k", "k")
    add_temp = _adds("llama_sampler_init_temp", "temp")
    add_temp_ext = _adds("llama_sampler_init_temp_ext", "t", "delta", "exponent")
    add_xtc = _adds("llama_sampler_init_xtc", "p", "t", "min_keep", "seed")
    add_top_n_sigma = _adds("llama_sampler_init_top_n_sigma", "n")
    add_mirostat = _adds("llama_sampler_init_mirostat", "n_vocab", "seed", "tau", "eta", "m")
    add_mirostat_v2 = _adds("llama_sampler_init_mirostat_v2", "seed", "tau", "eta")
    add_penalties = _adds(
        "llama_sampler_init_penalties", "n_vocab", "penalty_last_n", "penalty_repeat", "penalty_freq", "penalty_present"
    )

    def add_softmax(self) -> None:
        """Do nothing but warn: ``add_dist`` needs no softmax before it."""
        warnings.warn("add_softmax is deprecated: add_dist samples from logits", DeprecationWarning, stacklevel=2)

    def add_top_p(self, p: float, min_keep: int = 1) -> None:
        """Add a sampler of ``llama_sampler_init_top_p``."""
        self._add(raw.llama_sampler_init_top_p(p, min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> None:
        """Add a sampler of ``llama_sampler_init_min_p``."""
        self._add(raw.llama_sampler_init_min_p(p, min_keep))

    def add_typical(self, p: float, min_keep: int = 1) -> None:
        """Add a sampler of ``llama_sampler_init_typical``."""
        self._add(raw.llama_sampler_init_typical(p, min_keep))

    def add_grammar(self, model: OfModel, grammar: LlamaGrammar) -> None:
        """Add a sampler of ``llama_sampler_init_grammar``."""
        text, root = grammar._grammar.encode(), grammar._root.encode()
        self._add(raw.llama_sampler_init_grammar(model.vocab, text, root))

    def add_grammar_lazy_patterns(
        self, model: OfModel, grammar: LlamaGrammar, trigger_patterns: Sequence[str], trigger_tokens: Sequence[int]
    ) -> None:
        """Add a sampler of ``llama_sampler_init_grammar_lazy_patterns``."""
        patterns, tokens = _strings(trigger_patterns), (raw.llama_token * len(trigger_tokens))(*trigger_tokens)
        self._add(
            raw.llama_sampler_init_grammar_lazy_patterns(
                model.vocab,
                grammar._grammar.encode(),
                grammar._root.encode(),
                patterns,
                len(patterns),
                tokens,
                len(tokens),
            )
        )

    def add_dry(
        self,
        model: OfModel,
        dry_multiplier: float,
        dry_base: float,
        dry_allowed_length: int,
        dry_penalty_last_n: int,
        seq_breakers: Sequence[str],
    ) -> None:
        """Add a sampler of ``llama_sampler_init_dry``."""
        breakers = _strings(seq_breakers)
        numbers = dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n
        self._add(raw.llama_sampler_init_dry(model.vocab, *numbers, breakers, len(breakers)))

    def add_logit_bias(self, n_vocab: int, logit_bias: Mapping[int, float]) -> None:
        """Add a sampler of ``llama_sampler_init_logit_bias``."""
        biases = (raw.llama_logit_bias * len(logit_bias))(*logit_bias.items())
        self._add(raw.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))

    def add_infill(self, model: OfModel) -> None:
        """Add a sampler of ``llama_sampler_init_infill``."""
        self._add(raw.llama_sampler_init_infill(model.vocab))

    def add_custom(self, apply_func: Callable[[Any], None]) -> None:
        """Add a function of a pointer to a ``llama_token_data_array``."""
        custom = CustomSampler(apply_func)
        self._add(custom.get_sampler())
        self.custom_samplers.append((raw.llama_sampler_chain_n(self.sampler) - 1, custom))

    def get_seed(self) -> int:
        """Return the seed in use."""
        return int(raw.llama_sampler_get_seed(self.sampler))

    def sample(self, ctx: OfContext, idx: int = -1) -> int:
        """Choose a token for a row of the last decode, and accept it."""
        return int(raw.llama_sampler_sample(self.sampler, ctx.ctx, idx))

    def accept(self, token: int) -> None:
        """Tell the samplers that a token was chosen."""
        raw.llama_sampler_accept(self.sampler, token)

    def reset(self) -> None:
        """Forget what was chosen."""
        raw.llama_sampler_reset(self.sampler)

    def clone(self) -> LlamaSampler:
        """Return a copy; raise NotImplementedError where a sampler is a function."""
        if self.custom_samplers:
            raise NotImplementedError("a chain with a sampler that is a function has no copy")
        made = LlamaSampler.__new__(LlamaSampler)
        made.sampler, made.custom_samplers = raw.llama_sampler_clone(self.sampler), []
        return made


def _strings(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))

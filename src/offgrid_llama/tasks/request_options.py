"""RequestOptions: what a caller can say about one request, checked once and the same for every way to generate.

To add an option, add a field to ``RequestOptions`` with its line in the docstring and its check, and the same name and type
to ``RequestArguments``, or to ``GenerationArguments`` if ``generate`` and ``infill`` take it, too. A test compares them. An
option with the name of a field of SamplingParams replaces that field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from offgrid_llama.native.check import callback, number, refuse_unknown
from offgrid_llama.native.kinds import listed, switch, texts
from offgrid_llama.sampling.grammar.grammar import Grammar
from offgrid_llama.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import LoRA

__all__ = ["GenerationArguments", "LoRAs", "LogitsProcessor", "RequestArguments", "RequestOptions"]

LoRAs: TypeAlias = "Mapping[LoRA, float] | Mapping[str, float] | Mapping[LoRA | str, float] | Iterable[LoRA | str]"
"""Adapters of a model with their scales, or with a scale of 1; those that an Engine has by names also by these."""

LogitsProcessor: TypeAlias = "Callable[[Sequence[int], npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]"
"""A function of (token ids so far, with the prompt's) and (logits, float32[n_vocab], writable)."""


class GenerationArguments(TypedDict, total=False):
    """The options of ``generate`` and ``infill``, as keyword arguments; see RequestOptions."""

    max_tokens: int
    sampling: SamplingParams | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    grammar: Grammar | None
    stop: str | Iterable[str]
    parse_special: bool


class RequestArguments(GenerationArguments, total=False):
    """The options of ``Engine.submit``, as keyword arguments; see RequestOptions."""

    n: int
    min_tokens: int
    ignore_eos: bool
    n_keep: int | None
    n_discard: int | None
    priority: int
    seq_id: int | None
    logprobs: int | None
    sampled_logprobs: bool
    prompt_logprobs: int | None
    chain: bool
    progress: bool
    cache_prompt: bool
    lookup: bool
    prediction: str | Sequence[int] | None
    draft: bool
    logits_processors: Sequence[LogitsProcessor]
    unparse_special: bool | Collection[int]
    cache_salt: str
    tenant: str
    until: Callable[[str, float], bool] | None
    loras: LoRAs | None


@dataclass(frozen=True)
class RequestOptions:
    """The options of one request.

    Attributes:
        max_tokens: the most tokens to generate for each answer.
        sampling: how tokens are chosen; None is ``SamplingParams()``.
        temperature, top_k, top_p, min_p, seed, grammar: replace those of ``sampling``. A temperature of 0 is greedy. The
            same seed makes the same draws: the answer differs only where rounding decides between two tokens, which
            ``Engine(deterministic=True)`` excludes. The ``n`` answers have the seeds ``seed``, ``seed + 1`` and so on. A
            grammar constrains the text.
        stop: strings that end the text and are not part of it.
        parse_special: read ``<|im_start|>`` and the like in a prompt of text as control tokens, as a rendered chat
            template needs.
        n: how many answers to generate; they share the prompt.
        min_tokens: no token ends the text before it has this number of them. Stop strings still end it.
        ignore_eos: forbid the tokens that end a text, so that it goes on to ``max_tokens`` or a stop string.
        n_keep: where the sequence is full, continue with its first ``n_keep`` tokens and the later half of the others
            (context shift); the model's memory must support it (``Memory.can_shift``). -1 keeps the whole prompt. None ends
            the answer there.
        n_discard: how many tokens behind these such a shift removes; None is half of the others.
        priority: requests with a larger one start first.
        seq_id: the only sequence of the engine that the request takes, from 0 to ``n_seq_max - 1``; it waits until that
            one is free. None takes any.
        logprobs: report the logprob of each token, and of the ``logprobs`` most probable ones: from the model's own
            logits, before biases, penalties and temperature. None reports none.
        sampled_logprobs: report those of the distribution from which the token is drawn, after all samplers, instead. Tokens
            that these exclude are left out. Such a request takes longer.
        prompt_logprobs: report the logprob of each token of the prompt, and of the ``prompt_logprobs`` most probable ones in
            its place, from the model's own logits: ``Completion.prompt_logprobs``. Such a prompt is computed anew, even
            where it is cached, and in smaller pieces: ``n_outputs_max`` of the engine's context is the most rows with logits
            of a step. None reports none.
        chain: sample with a chain of llama.cpp even where a quicker way has the same probabilities: with the same seed it
            draws what llama.cpp's own programs draw. Requests with a grammar keep the quicker way.
        progress: give a stream a Piece without text, with ``n_computed``, when the prompt begins to be computed, and after
            each part of it.
        cache_prompt: begin with what is already computed of the prompt, and keep what is computed for later prompts.
        lookup: prompt lookup: guess the next tokens by what followed the same tokens before, in the prompt or the answer,
            and verify several guesses in one step, where that pays. The answer is the same, but for the rounding of
            larger batches.
        prediction: what is expected as the answer, as text or token ids, such as a file that the model shall change:
            ``lookup`` guesses by it first. ``Usage`` counts how much of it came.
        draft: let the engine's draft model guess, if it has one.
        logits_processors: functions of (token ids so far with the prompt's, logits), called for each token one after the
            other in the engine's thread. The logits are float32[n_vocab], to be changed in place; a returned array
            replaces them. An exception ends this request, and no other.
        unparse_special: write control tokens of the answer as their text, all of them or these; by default they give no
            text.
        cache_salt: requests with another salt cannot reuse this one's computed prefixes or compiled grammars, so timing
            reveals nothing about other requests.
        tenant: on whose behalf the request is. Where requests wait, tenants have their turns by the tokens that each has
            been given, so that none waits for all that another has submitted before; and of four sequences or more the last
            is for a tenant that has none.
        until: a function of (text so far, seconds since the first token), called in the engine's thread when text has come;
            where it returns True the answer ends, as at ``max_tokens``. An exception ends this request, and no other.
        loras: adapters of the model for this request, in place of the engine's: LoRAs, or names of ``Engine.adapters``, with
            a scale each (``{"style": 0.8}``), or without, which is 1. Requests with the same ones share steps; those with
            others wait for them. One with tokens that switch it on (aLoRA) is used from the last of these in the prompt on,
            or not at all where there are none; what comes before is computed without it, once for all. None is the
            engine's.
        params: the resulting SamplingParams, of all the above (not an argument).

    Raises ValueError or TypeError for an argument that is not as described.
    """

    max_tokens: int = 256
    sampling: SamplingParams | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    grammar: Grammar | None = None
    stop: str | Iterable[str] = ()
    parse_special: bool = False
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    n_keep: int | None = None
    n_discard: int | None = None
    priority: int = 0
    seq_id: int | None = None
    logprobs: int | None = None
    sampled_logprobs: bool = False
    prompt_logprobs: int | None = None
    chain: bool = False
    progress: bool = False
    cache_prompt: bool = True
    lookup: bool = True
    prediction: str | Sequence[int] | None = None
    draft: bool = True
    logits_processors: Sequence[LogitsProcessor] = ()
    unparse_special: bool | Collection[int] = False
    cache_salt: str = ""
    tenant: str = ""
    until: Callable[[str, float], bool] | None = None
    loras: LoRAs | None = None
    params: SamplingParams = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._set("n", number("n", self.n, 1))
        self._set("max_tokens", number("max_tokens", self.max_tokens, 1))
        self._set("priority", number("priority", self.priority, -(2**31)))
        self._set("min_tokens", number("min_tokens", self.min_tokens, 0))
        for name, low in (("n_keep", -1), ("n_discard", 1), ("seq_id", 0), ("prompt_logprobs", 0)):
            if getattr(self, name) is not None:
                self._set(name, number(name, getattr(self, name), low))
        for name in ("cache_salt", "tenant"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be str, not {type(getattr(self, name)).__name__}")
        self._set("logits_processors", listed("logits_processors", self.logits_processors, "functions"))
        for processor in self.logits_processors:
            callback("each of logits_processors", processor)
        self._set("stop", texts("stop", self.stop))
        if self.until is not None:
            callback("until", self.until)
        if self.prediction is not None and not isinstance(self.prediction, str):
            self._set("prediction", listed("prediction", self.prediction, "token ids, or a text"))
        for name in _SWITCHES:
            switch(name, getattr(self, name))
        if isinstance(self.unparse_special, (str, bytes)) or not isinstance(self.unparse_special, (bool, Collection)):
            raise TypeError(
                f"unparse_special must be True, False or token ids, not {type(self.unparse_special).__name__}"
            )
        self._set("params", self._params())

    def _params(self) -> SamplingParams:
        if self.sampling is not None and not isinstance(self.sampling, SamplingParams):
            raise TypeError(f"sampling must be SamplingParams, not {type(self.sampling).__name__}")
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        params = self.sampling or SamplingParams()
        return replace(params, **given) if given else params

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for other code

    @classmethod
    def read(cls, caller: str, arguments: Mapping[str, Any], allowed: type = RequestArguments) -> RequestOptions:
        """Return the options of a function's keyword arguments.

        Args:
            caller: the function's name, for errors.
            arguments: its keyword arguments.
            allowed: GenerationArguments or RequestArguments: those that the function takes.

        Raises TypeError for one that it does not take, and as the class does.
        """
        known = allowed.__annotations__.keys()
        more = sorted((arguments.keys() - known) & RequestArguments.__annotations__.keys())
        refuse_unknown(caller, more or arguments, known, "; Engine.submit() does" if more else "")
        return cls(**arguments)


_SWITCHES = ("parse_special", "lookup", "draft", "ignore_eos", "sampled_logprobs", "chain", "progress", "cache_prompt")
_SAMPLING = {each.name for each in fields(SamplingParams)} & RequestArguments.__annotations__.keys()
"""Options that replace those of ``sampling``: the ones that have a field of the same name there."""

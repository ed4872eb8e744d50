"""Submitter: a prompt and its checked options, made into the Requests of a completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from offgrid_llama.errors import ContextLengthError
from offgrid_llama.native.check import number
from offgrid_llama.sampling.fast_sampler import FastSampler, covers
from offgrid_llama.sampling.told_sampler import ToldSampler
from offgrid_llama.tasks.prompt_tokens import prompt_tokens
from offgrid_llama.text.text_stream import TextStream

from .completion import Answer, Completion, Events
from .later_end import LaterEnd
from .loras import Adapters, checked_loras, fingerprints, of_all_texts, of_prompt
from .planning.drafting import Acceptance
from .planning.lookup import Lookup
from .planning.request import LateAdapters
from .prompt_logprobs import PromptLogprobs
from .request import EngineRequest

if TYPE_CHECKING:
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model
    from offgrid_llama.sampling.chain import SamplerChain
    from offgrid_llama.sampling.sampling_params import SamplingParams
    from offgrid_llama.tasks.request_options import LoRAs, RequestOptions

    from .loop import Loop
    from .planning.drafting import Drafting
    from .planning.reasoning_budget import ReasoningBudget

__all__ = ["Submitter", "queue"]

C = TypeVar("C", bound=Completion)


class Submitter:
    """Makes the Requests of one engine, in the caller's thread.

    Args:
        model: the engine's Model.
        n_ctx_seq: most tokens of a sequence, prompt and answer together.
        n_seq_max: how many sequences there are.
        can_shift: whether the context's memory can be shifted.
        drafting: how the draft model does; None without one.
        loras: the adapters of requests that name none, with their scales.
        adapters: those that requests can name.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx_seq: int,
        n_seq_max: int,
        can_shift: bool,
        drafting: Drafting | None,
        loras: Adapters,
        adapters: Mapping[str, LoRA],
    ) -> None:
        self._model = model
        self._n_ctx_seq = n_ctx_seq
        self._n_seq_max = n_seq_max
        self._uncached = count()
        self._adapters = adapters
        self._loras, self._first_loras = loras, of_all_texts(loras)
        self._can_shift = can_shift
        self._drafting = drafting
        self._control_texts: dict[int, bytes] = {}

    def set_loras(self, loras: LoRAs) -> None:
        """Use these adapters for requests that name none."""
        self._loras = checked_loras(self._model, loras, self._adapters)

    def make(
        self,
        prompt: str | bytes | Sequence[int],
        options: RequestOptions,
        submitted: float,
        make_budget: Callable[[], ReasoningBudget] | None = None,
    ) -> list[EngineRequest]:
        """Return the requests of a new completion, one with its answer for each of ``options.n``.

        Args:
            prompt: text, or token ids.
            options: the checked options.
            submitted: when the caller submitted it, by ``time.perf_counter``.
            make_budget: makes the reasoning budget of an answer; None limits nothing.

        Raises ContextLengthError, ValueError, TypeError, UnicodeError, TokenizeError or GrammarError.
        """
        tokens = prompt_tokens(self._model.vocab, prompt, parse_special=options.parse_special)
        self._check(tokens, options)
        params = self._without_ends(options.params) if options.ignore_eos else options.params
        if options.cache_salt and params.grammar is not None:
            params = replace(params, grammar=params.grammar.salted(options.cache_salt))
        events = Events(len(tokens), submitted)
        shown = self._shown(options.unparse_special)
        requests: list[EngineRequest] = []
        try:
            for index in range(options.n):
                seed = None if params.seed is None else (params.seed + index) % 2**32
                sampler = self._sampler(params if seed is None else replace(params, seed=seed), options)
                request = EngineRequest(
                    tokens, options.max_tokens, options.priority, sampler=sampler, stream=TextStream(options.stop),
                    events=events, processors=options.logits_processors, shown=shown,
                    reports_progress=options.progress, wanted=options.seq_id, until=options.until,
                )  # fmt: skip
                requests.append(request)
                self._complete(request, options, make_budget)
                request.answer = Answer(index, sampler.seed, request)
                events.answers.append(request.answer)
        except BaseException:
            discard(requests)
            raise
        events.n_unfinished = options.n
        if options.prompt_logprobs is not None:  # the first one computes the prompt, and the others begin with that
            _score(requests[0], 1, PromptLogprobs(tokens, options.prompt_logprobs))
        return requests

    def make_scored(
        self, tokens: Sequence[int], n_given: int, options: RequestOptions, submitted: float
    ) -> list[EngineRequest]:
        """Return the request that computes how probable the tokens behind the first ``n_given`` are.

        What was computed of these before is not computed again. Raises as ``make`` does.
        """
        requests = self.make(tokens[:-1], options, submitted)
        requests[0].scores_next = True
        _score(requests[0], n_given, PromptLogprobs(tokens, 1))
        return requests

    def _check(self, tokens: Sequence[int], options: RequestOptions) -> None:
        """Raise for what this engine's context cannot do."""
        limit = self._n_ctx_seq
        if options.n_keep is not None:
            if options.n_keep > limit - 2:
                raise ValueError(f"n_keep must be from 0 to {limit - 2}, not {options.n_keep}")
            if not self._can_shift:
                raise ValueError(f"n_keep: the memory of {self._model.handle.name} cannot be shifted; leave it out")
        if options.prompt_logprobs is not None:
            number("prompt_logprobs", options.prompt_logprobs, 0, self._model.vocab.n_tokens)
        if options.seq_id is not None and options.seq_id >= self._n_seq_max:
            raise ValueError(f"seq_id must be from 0 to {self._n_seq_max - 1}, not {options.seq_id}")
        if len(tokens) >= limit:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens and a sequence has {limit}: there is no room to generate. "
                "Make the engine with a larger n_ctx, a smaller n_seq_max, or kv_unified=True",
                n_tokens=len(tokens), n_ctx=limit,
            )  # fmt: skip

    def _complete(
        self, request: EngineRequest, options: RequestOptions, make_budget: Callable[[], ReasoningBudget] | None
    ) -> None:
        """Set what a request needs besides its sampler and its stream."""
        request.n_keep, request.n_discard = options.n_keep, options.n_discard
        if options.n_keep == -1:
            request.n_keep = min(len(request.prompt), self._n_ctx_seq - 2)
        self._set_cache(request, options)
        if options.min_tokens:
            later = LaterEnd(len(request.prompt) + options.min_tokens, self._model.vocab.eog_tokens())
            request.processors, request.min_tokens = (*request.processors, later), options.min_tokens
        request.tenant = options.tenant
        request.guided = request.sampler.guide is not None
        if options.n_keep is not None:
            request.sampler.forces = False
        request.budget = None if make_budget is None else make_budget()
        guesses = not request.processors and request.budget is None and not request.sampler.by_hand
        if options.lookup and guesses:
            request.guesser = Lookup(request.prompt, guided=request.guided, predicted=self._predicted(options))
        if self._drafting is not None and options.draft and guesses and not request.guided:
            request.acceptance = Acceptance(self._drafting.chance)

    def _predicted(self, options: RequestOptions) -> list[int]:
        """Return the token ids that the caller expects, no more than a sequence has."""
        expected = options.prediction
        if not expected:
            return []
        if isinstance(expected, str):
            return self._model.vocab.tokenize(expected, add_special=False)[: self._n_ctx_seq]
        check = self._model.vocab.check_token
        return [check(f"prediction[{i}]", token) for i, token in enumerate(expected[: self._n_ctx_seq])]

    def _set_cache(self, request: EngineRequest, options: RequestOptions) -> None:
        """Set which prefixes a request finds, and the adapters that these depend on."""
        request.salt = options.cache_salt
        loras = options.loras
        wanted = self._loras if loras is None else checked_loras(self._model, loras, self._adapters)
        request.adapters, late_pos = of_prompt(wanted, request.prompt)
        if request.adapters != self._first_loras:  # what other adapters compute is of no use
            request.salt += f"\0loras {fingerprints(request.adapters)}"
        if not options.cache_prompt:
            request.is_kept = False
            request.salt += f"\0{next(self._uncached)}"  # which no other request has
        if late_pos is not None:
            request.late = LateAdapters(late_pos, wanted, f"{request.salt}\0late {fingerprints(wanted)}")

    def _without_ends(self, params: SamplingParams) -> SamplingParams:
        """Return sampling parameters that forbid the tokens that end a text."""
        return replace(
            params, logit_bias={**params.logit_bias, **dict.fromkeys(self._model.vocab.eog_tokens(), -math.inf)}
        )

    def _sampler(self, params: SamplingParams, options: RequestOptions) -> FastSampler | SamplerChain | ToldSampler:
        vocab, n = self._model.vocab, options.logprobs
        wants_chain = (n is not None and options.sampled_logprobs) or (options.chain and params.grammar is None)
        if covers(params) and not wants_chain:
            return FastSampler(vocab, params, n_logprobs=n)
        chain = params.chain(vocab)
        return chain if n is None else ToldSampler(chain, n, sampled=options.sampled_logprobs)

    def _shown(self, tokens: bool | Collection[int]) -> Mapping[int, bytes] | None:
        """Return the text of the control tokens that an answer shows; None is none of them."""
        if not tokens:
            return None
        if not self._control_texts:
            controls = self._model.vocab.control_tokens()
            self._control_texts = {token: text.encode() for text, token in controls.items()}
        if tokens is True:
            return self._control_texts
        return {token: text for token, text in self._control_texts.items() if token in tokens}


def _score(request: EngineRequest, scored: int, wanted: PromptLogprobs) -> None:
    """Let a request tell the logprobs of the tokens from the index ``scored`` on."""
    request.scored = scored
    request.prompt_logprobs = request.events.prompt_logprobs = wanted


def queue(loop: Loop, requests: list[EngineRequest], kind: type[C], *, cancels_if_interrupted: bool) -> C:
    """Hand requests to the engine's thread; return their completion, of this kind. Raises QueueFullError and ClosedError."""
    try:
        loop.submit(requests)
    except BaseException:
        discard(requests)
        raise
    return kind(requests[0].events, partial(loop.cancel, requests), cancels_if_interrupted=cancels_if_interrupted)


def discard(requests: Iterable[EngineRequest]) -> None:
    """Free the samplers of requests that were never submitted."""
    for request in requests:
        request.sampler.close()

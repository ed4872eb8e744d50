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
from .media_prompt import MediaPrompt, has_parts
from .media_reader import read_media_prompt
from .planning.drafting import Acceptance
from .planning.lookup import Lookup
from .planning.media_tokens import text_tokens
from .planning.request import LateAdapters
from .prompt_logprobs import PromptLogprobs
from .request import EngineRequest

if TYPE_CHECKING:
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model
    from offgrid_llama.sampling.chain import SamplerChain
    from offgrid_llama.sampling.sampling_params import SamplingParams
    from offgrid_llama.tasks.request_options import LoRAs, RequestOptions

    from .encoder import Encoder
    from .loop import Loop
    from .media_prompt import AnyPrompt
    from .planning.drafting import Drafting
    from .planning.limits import Limits
    from .planning.reasoning_budget import ReasoningBudget

__all__ = ["Submitter", "queue"]

C = TypeVar("C", bound=Completion)


class Submitter:
    """Makes the Requests of one engine, in the caller's thread.

    Args:
        model: the engine's Model.
        limits: of its context.
        encoder: encodes pictures and sounds; None where prompts have none.
        can_shift: whether the context's memory can be shifted.
        drafting: how the draft model does; None without one.
        loras: the adapters of requests that name none, with their scales.
        adapters: those that requests can name.
    """

    def __init__(
        self,
        model: Model,
        *,
        limits: Limits,
        encoder: Encoder | None,
        can_shift: bool,
        drafting: Drafting | None,
        loras: Adapters,
        adapters: Mapping[str, LoRA],
    ) -> None:
        self._model = model
        self._n_ctx_seq = limits.n_ctx_seq
        self._n_seq_max = limits.n_seq_max
        self._n_batch = limits.n_batch
        self._encoder = encoder
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
        prompt: AnyPrompt,
        options: RequestOptions,
        submitted: float,
        make_budget: Callable[[], ReasoningBudget] | None = None,
    ) -> list[EngineRequest]:
        """Return the requests of a new completion, one with its answer for each of ``options.n``.

        Args:
            prompt: text, token ids, or a list of texts, token ids, Images and Audios.
            options: the checked options.
            submitted: when the caller submitted it, by ``time.perf_counter``.
            make_budget: makes the reasoning budget of an answer; None limits nothing.

        Raises ContextLengthError, ValueError, TypeError, UnicodeError, TokenizeError, MediaError or GrammarError.
        """
        tokens, media = self._tokens(prompt, options)
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
                    media=media, chunks=() if media is None else media.chunks,
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

    def _tokens(self, prompt: AnyPrompt, options: RequestOptions) -> tuple[list[int], MediaPrompt | None]:
        """Return the tokens of a prompt, and its pictures and sounds."""
        if not has_parts(prompt):
            return prompt_tokens(self._model.vocab, prompt, parse_special=options.parse_special), None  # type: ignore[arg-type]
        if self._encoder is None:
            raise ValueError(
                "the prompt is a list with texts or pictures, and the engine has no projector: make it with one"
            )
        for name in ("n_keep", "prompt_logprobs"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name} does not go with pictures and sound; leave it out")
        self._check_room(self._encoder.projector.least_tokens(prompt))
        media = read_media_prompt(
            self._encoder,
            prompt,
            parse_special=options.parse_special,
            n_batch=self._n_batch,
        )
        if not media.tokens:
            raise ValueError("prompt gives no tokens")
        return media.tokens, media if media.chunks else None

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
        self._check_room(len(tokens))

    def _check_room(self, n_tokens: int) -> None:
        """Raise ContextLengthError for a prompt of that length which leaves no room to generate."""
        limit = self._n_ctx_seq
        if n_tokens >= limit:
            raise ContextLengthError(
                f"the prompt has {n_tokens} tokens and a sequence has {limit}: there is no room to generate. "
                "Make the engine with a larger n_ctx, a smaller n_seq_max, or kv_unified=True",
                n_tokens=n_tokens, n_ctx=limit,
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
            n_prompt = len(text_tokens(request.prompt, request.chunks))
            later = LaterEnd(n_prompt + options.min_tokens, self._model.vocab.eog_tokens())
            request.processors, request.min_tokens = (*request.processors, later), options.min_tokens
        request.tenant = options.tenant
        request.guided = request.sampler.guide is not None
        if options.n_keep is not None:
            request.sampler.forces = False
        request.budget = None if make_budget is None else make_budget()
        guesses = not request.processors and request.budget is None and not request.sampler.by_hand
        if options.lookup and guesses:
            known = text_tokens(request.prompt, request.chunks)
            request.guesser = Lookup(known, guided=request.guided, predicted=self._predicted(options))
        if self._drafting is not None and options.draft and guesses and not request.guided and not request.chunks:
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

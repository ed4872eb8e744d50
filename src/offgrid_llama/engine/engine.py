"""Engine: many requests at once on one model, for threads and for asyncio."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._check import number, real
from .._handle import refuse_after_fork
from ..chat import ChatTemplate
from ..chat.response_format import grammar_of
from ..errors import ContextLengthError
from ..fast_sampling import FastSampler, covers
from ..grammar import Grammar
from ..guide import prepare
from ..model import Model
from ..sampling_params import SamplingParams
from ..text import TextStream
from .budget import Budget
from .chat import ChatCompletion
from .chat_format import ChatFormat, ToolUse
from .completion import Answer, Completion, Events, Piece
from .drafter import check_draft
from .guessing import Acceptance, Drafting, Lookup
from .loop import EngineStats, Loop
from .options import LogitsProcessor, RequestOptions
from .request import Request
from .runner import Runner, StepView
from .slots import Trim

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ..adapter import LoRA
    from ..chain import SamplerChain
    from ..chat.tool import Tool

__all__ = ["Engine"]

DEFAULT_N_CTX_SEQ = 4096
MOST_FORMATS = 64
"""Chat templates that an engine keeps."""

N_GUESSED = 16
"""Most tokens that are guessed in a step, of all requests; the rows of logits for them are reserved."""


class Engine:
    """Generates for many at once: requests share each step, and what their prompts begin with is computed once.

    A request gets a sequence of the context, and finds in it whatever an earlier or running one has computed of its prompt.
    Steps serve all who generate first, with one token each; prompts are computed in pieces that leave the others their pace.

    Args:
        model: a Model, or the name or path of one, which the engine then loads, and closes.
        n_seq_max: most requests that generate at once; others wait in the queue.
        n_ctx: positions in all sequences together. Each has ``n_ctx / n_seq_max``; with ``kv_unified=True`` a request waits
            until as many are left as its prompt and ``max_tokens`` take. None is as many as the model was trained for, 4,096
            at most, for each.
        n_batch: most tokens of a step; more than ``n_seq_max``.
        max_queue: most requests that wait.
        draft: a small model with the same vocabulary, or the name or path of one: it guesses the next tokens, and the model
            checks several in one step, where that pays. The answers are the same, but for the rounding of larger batches.
        loras: adapters of the model that all requests use, as ``Context.set_loras`` takes them; they stay open as long as
            the engine.
        cache_bytes: host memory for what finished requests have computed, once their sequences are needed for others; and of
            models whose memory cannot be cut, for the beginnings that prompts share. 0 is none.
        cache_dir: an existing folder for what ``cache_bytes`` have no room for; what is put there goes with the engine.
        cache_dir_bytes: most bytes to put there.
        stream_interval: seconds within which a stream gets no further piece: steps that begin within it are made in one
            call, and what they give comes together. The first token of an answer never waits. 0 is a piece for each step; a
            thirtieth of a second, which few readers notice, saves small models a good part of what is around the steps.
        on_step: called in the engine's thread in each step, before tokens are sampled, with the StepView of all of them:
            whose they are, and their logits as one writable array. What it raises is logged, and harms no request.
        context: further arguments of Context, such as ``n_threads``, ``type_k`` or ``flash_attn_type``.

    Raises ContextError, ValueError for a draft model or an adapter that does not fit, AdapterError for one that is to begin
    in the middle of a text (aLoRA), OSError for a ``cache_dir`` that cannot be written to, and what Model raises for a name
    or path.

    Attributes:
        model: the Model.
        n_ctx_seq: most tokens of one request, prompt and answer together.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        *,
        n_seq_max: int = 8,
        n_ctx: int | None = None,
        n_batch: int = 512,
        max_queue: int = 10_000,
        draft: Model | str | os.PathLike[str] | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
        cache_bytes: int = 2**30,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_dir_bytes: int = 2**33,
        stream_interval: float = 0.0,
        on_step: Callable[[StepView], object] | None = None,
        **context: Any,
    ) -> None:
        n_seq_max = number("n_seq_max", n_seq_max, 1, 256)
        n_batch = number("n_batch", n_batch, n_seq_max + 1)
        max_queue = number("max_queue", max_queue, 1)
        cache_bytes = number("cache_bytes", cache_bytes, 0, 2**63)
        cache_dir_bytes = number("cache_dir_bytes", cache_dir_bytes, 0, 2**63)
        stream_interval = real("stream_interval", stream_interval, 0, 1)
        self._own: list[Model] = []
        self.model: Model = self._load(model)
        try:
            small = None if draft is None else self._load(draft)
            if small is not None:
                check_draft(small, self.model)
            if n_ctx is None:
                n_ctx = n_seq_max * min(self.model.n_ctx_train or DEFAULT_N_CTX_SEQ, DEFAULT_N_CTX_SEQ)
            runner = Runner(
                self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch, n_guessed=N_GUESSED,
                on_step=on_step, draft=small, loras=loras, cache_dir=cache_dir, options=context,
            )  # fmt: skip
        except BaseException:
            _close(self._own)
            raise
        self.n_ctx_seq = runner.context.n_ctx_seq
        self._formats: dict[ChatTemplate | str | None, ChatFormat] = {}
        self._controls: dict[int, bytes] = {}
        self._can_shift = runner.context.memory.can_shift
        guesses = runner.trim is not Trim.NOTHING and on_step is None
        self._drafting = Drafting() if small is not None and guesses else None
        self._loop = Loop(
            f"Engine of {self.model._handle.name}", runner, n_seq_max=n_seq_max, n_batch=n_batch,
            n_ctx_seq=self.n_ctx_seq, eog=self.model.vocab.eog_tokens(), max_queue=max_queue,
            n_guessed=N_GUESSED if guesses else 0, drafting=self._drafting, trim=runner.trim,
            shelf_bytes=cache_bytes, disk_bytes=0 if cache_dir is None else cache_dir_bytes, n_cells=runner.n_cells,
            pad_limit=runner.pad_limit, stream_interval=stream_interval, when_quiet=partial(prepare, self.model.vocab),
        )  # fmt: skip
        self._loop.start()
        self._finalizer = weakref.finalize(self, _finalize, self._loop, self._own)

    def submit(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        n: int = 1,
        max_tokens: int = 256,
        n_keep: int | None = None,
        priority: int = 0,
        sampling: SamplingParams | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        grammar: Grammar | None = None,
        stop: str | Iterable[str] = (),
        logprobs: int | None = None,
        lookup: bool = True,
        draft: bool = True,
        logits_processors: Sequence[LogitsProcessor] = (),
        parse_special: bool = False,
        unparse_special: bool | Collection[int] = False,
        cache_salt: str = "",
        _budget: Callable[[], Budget] | None = None,
    ) -> Completion:
        """Queue a prompt to be completed, and return its Completion at once. From any thread.

        Args:
            prompt: text (str, or bytes of UTF-8), or token ids as they are.
            n: how many answers to give; they share the prompt.
            max_tokens: most tokens of each answer.
            n_keep: where the sequence is full, go on with its first ``n_keep`` tokens and the later half of the others
                (context shift); the model's memory must be able to (``Memory.can_shift``). None ends the answer there.
            priority: requests of a larger one begin first.
            sampling: how tokens are chosen; None is SamplingParams as it is.
            temperature, top_k, top_p, min_p, seed, grammar: stand in place of those of ``sampling``. A temperature of 0 is
                greedy. With the same seed comes the same answer, whatever else is running; the ``n`` answers have the seeds
                ``seed``, ``seed + 1`` and so on.
            stop: strings that end the text; they are not part of it.
            logprobs: for each token tell its own logprob and so many of the most probable ones: what the model gave, before
                biases, penalties and temperature.
            lookup: guess the next tokens by what has followed the same ones before, in the prompt or the answer, and check
                several in one step, where that pays. The answer is the same, but for the rounding of larger batches.
            draft: let the engine's draft model guess, if it has one.
            logits_processors: functions of (token ids so far with the prompt's, logits), called for each token one after the
                other in the engine's thread. The logits are float32[n_vocab], to be changed in place; what a function
                returns, unless None, stands in their place. What it raises ends this request, and no other.
            parse_special: read ``<|im_start|>`` and the like in a prompt of text as control tokens, as a rendered chat
                template needs.
            unparse_special: write control tokens of the answer as their text, all of them or these; by default they give
                none.
            cache_salt: requests with another one find nothing of what this one has computed, or compiled of its grammar, so
                that how fast it is tells nobody what others have asked.

        Raises:
            ContextLengthError: the prompt does not fit into ``n_ctx_seq``, with room for a token.
            QueueFullError: ``max_queue`` requests wait.
            ClosedError: the engine or its model is closed, or the engine has failed.
            ValueError, TypeError, UnicodeError, TokenizeError, GrammarError: an argument is not as above.
        """
        refuse_after_fork()
        self._loop.check_open()
        submitted = perf_counter()
        tokens = self._tokens(prompt, parse_special)
        number("n", n, 1)
        number("max_tokens", max_tokens, 1)
        if not isinstance(cache_salt, str):
            raise TypeError(f"cache_salt must be str, not {type(cache_salt).__name__}")
        if n_keep is not None:
            number("n_keep", n_keep, 0, self.n_ctx_seq - 2)
            if not self._can_shift:
                raise ValueError(f"n_keep: the memory of {self.model._handle.name} cannot be shifted; leave it out")
        if len(tokens) >= self.n_ctx_seq:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens and a sequence has {self.n_ctx_seq}: there is no room to generate. "
                "Make the engine with a larger n_ctx, a smaller n_seq_max, or kv_unified=True",
                n_tokens=len(tokens), n_ctx=self.n_ctx_seq,
            )  # fmt: skip
        params = _params(
            sampling, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, grammar=grammar
        )
        if cache_salt and params.grammar is not None:
            params = replace(params, grammar=params.grammar._salted(cache_salt))
        processors = tuple(logits_processors)
        for processor in processors:
            if not callable(processor):
                raise TypeError(f"logits_processors must be functions, not {type(processor).__name__}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        events = Events(len(tokens), submitted)
        shown = self._shown(unparse_special)
        samplers: list[FastSampler | SamplerChain] = []
        try:
            for index in range(n):
                each = params if params.seed is None else replace(params, seed=(params.seed + index) % 2**32)
                samplers.append(self._sampler(each, logprobs))
                request = Request(tokens, max_tokens, number("priority", priority, -(2**31)), samplers[-1])
                request.n_keep = n_keep
                request.processors = processors
                request.salt = cache_salt
                sampler = samplers[-1]
                request.guided = isinstance(sampler, FastSampler) and sampler.guide is not None
                if isinstance(sampler, FastSampler) and n_keep is not None:
                    sampler.forces = False
                request.budget = None if _budget is None else _budget()
                guesses = not processors and request.budget is None
                request.guesser = Lookup(tokens, guided=request.guided) if lookup and guesses else None
                if self._drafting is not None and draft and guesses and not request.guided:
                    request.acceptance = Acceptance(self._drafting.chance)
                request.answer = Answer(index, samplers[-1].seed, request, TextStream(stops), events, shown)
                events.answers.append(request.answer)
            events.n_unfinished = n
            self._loop.submit([answer.request for answer in events.answers])
        except BaseException:
            for sampler in samplers:
                sampler.close()
            raise
        return Completion(events, self._loop.cancel)

    def generate(self, prompt: str | bytes | Sequence[int], **options: Unpack[RequestOptions]) -> Completion:
        """Submit a prompt, wait for the end, and return the Completion. Takes what ``submit`` takes.

        Raises as ``submit`` does, and what the request has failed with.
        """
        return self.submit(prompt, **options).result()

    def stream(self, prompt: str | bytes | Sequence[int], **options: Unpack[RequestOptions]) -> Iterator[Piece]:
        """Submit a prompt, and return its pieces as they come. Takes what ``submit`` takes.

        Whoever stops to iterate, and drops the iterator, cancels what is left.
        """
        return iter(self.submit(prompt, **options))

    async def generate_async(
        self, prompt: str | bytes | Sequence[int], **options: Unpack[RequestOptions]
    ) -> Completion:
        """Do what ``generate`` does, on an event loop. A task that is cancelled cancels the request."""
        with self.submit(prompt, **options) as completion:
            return await completion

    def stream_async(
        self, prompt: str | bytes | Sequence[int], **options: Unpack[RequestOptions]
    ) -> AsyncIterator[Piece]:
        """Do what ``stream`` does, for ``async for``."""
        return aiter(self.submit(prompt, **options))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: ChatTemplate | str | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        response_format: object = None,
        tools: Sequence[Tool | Callable[..., Any] | Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        split_reasoning: bool = True,
        reasoning_budget: int | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion:
        """Submit a conversation, and return the answer to come at once, as ``submit`` does.

        What the messages say stays text: no control token comes from them, whatever they look like.

        Args:
            messages: dicts with "role" and "content", and what else the template knows; a content may be a list of parts
                ``{"type": "text", "text": ...}``.
            template: a ChatTemplate, or the name of one of those that the model has; None is its usual one.
            variables: what the template may use besides, such as ``{"enable_thinking": False}``.
            continue_final_message: go on with the last message, the assistant's, where it ends.
            response_format: what the answer must be: a type, such as a Pydantic model or a dataclass, of which ``parsed()``
                then is; a Grammar; or a dict of OpenAI's, such as ``{"type": "json_object"}``. Reasoning before it is free.
            tools: what the model may call: Python functions with typed parameters, Tools, or OpenAI's dicts. Its calls are
                ``tool_calls`` of the answer, and always whole, of a tool that there is, with arguments that fit its schema
                (texts that the model writes without quotes are held to their ``enum`` only).
            tool_choice: "auto" (None) to leave it to the model, "required" to have it call one, the name of that one, or
                "none".
            parallel_tool_calls: whether there may be several calls in one answer.
            split_reasoning: tell apart what the model thinks and what it answers, where the template marks that.
            reasoning_budget: most tokens to think, after which it is made to answer; 0 is none; None is no limit.
            options: what ``submit`` takes.

        Raises ChatTemplateError where there is no template, or it refuses the messages; GrammarError for a response format
        or tools that cannot be used; ValueError and TypeError for messages and tools that are none; and as ``submit`` does.
        """
        self._loop.check_open()
        chat_format = self._format(template)
        use = ToolUse.of(tools, tool_choice, parallel_tool_calls)
        salt = options.get("cache_salt", "")
        prompt = chat_format.prompt(messages, continue_final_message, variables or {}, use.tools, salt=salt)
        budget = None
        if reasoning_budget is not None:
            prompt, budget = chat_format.limited(number("reasoning_budget", reasoning_budget, 0), prompt)
        grammar = grammar_of(response_format)
        if options.get("grammar") is not None and (grammar is not None or use.allowed):
            other = "tools" if grammar is None else "response_format"
            raise ValueError(f"{other} and grammar say both what the answer must be; leave one of them out")
        if grammar is not None or use.allowed:
            options["grammar"] = chat_format.grammar(grammar, prompt, use)
        options.setdefault("unparse_special", chat_format.shown)
        completion = self.submit(prompt.tokens, _budget=budget, **options)
        return ChatCompletion(
            completion, chat_format, tools=use.allowed, inside=prompt.inside, split_reasoning=split_reasoning,
            response_format=response_format,
        )  # fmt: skip

    def set_n_threads(self, n_threads: int) -> None:
        """Let steps have so many threads from the next one on (``llama_set_n_threads``). From any thread.

        Two engines that compute at the same time, each with all cores, slow each other down by far more than half: what one
        thread waits for may be descheduled. Give each its share.
        """
        self._loop.check_open()
        self._loop.set_n_threads(number("n_threads", n_threads, 1, 512))

    def stats(self) -> EngineStats:
        """Return what the engine has done and is doing. From any thread."""
        return self._loop.stats()

    @property
    def closed(self) -> bool:
        """Whether the engine is closed, or has failed."""
        return bool(self._loop.closed)

    def close(self, *, drain: bool = False) -> None:
        """Free the context, and the models that the engine has loaded. May be called twice.

        Requests end as cancelled; with ``drain`` those that were submitted before go on to their end, and this waits for
        them.
        """
        self._loop.close(drain)
        self._finalizer.detach()
        _close(self._own)

    def __enter__(self) -> Self:
        self._loop.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self._loop.name}{f' ({self._loop.closed})' if self._loop.closed else ''}>"

    def _format(self, template: ChatTemplate | str | None) -> ChatFormat:
        """Return a template with what is known of it, which is found out once."""
        known = self._formats.get(template)
        if known is None:
            made = template if isinstance(template, ChatTemplate) else ChatTemplate.of(self.model, name=template)
            if len(self._formats) >= MOST_FORMATS:
                self._formats.clear()
            known = self._formats[template] = ChatFormat(made, self.model)
        return known

    def _load(self, model: Model | str | os.PathLike[str]) -> Model:
        """Return a model, and close it with the engine if it was not one before."""
        if isinstance(model, Model):
            return model
        self._own.append(Model(model))
        return self._own[-1]

    def _tokens(self, prompt: str | bytes | Sequence[int], parse_special: bool) -> list[int]:
        vocab = self.model.vocab
        if isinstance(prompt, (str, bytes)):
            tokens = vocab.tokenize(prompt, parse_special=parse_special)
        else:
            tokens = [vocab._id(f"prompt[{i}]", token) for i, token in enumerate(prompt)]
        if not tokens:
            raise ValueError("prompt gives no tokens")
        return tokens

    def _shown(self, tokens: bool | Collection[int]) -> Mapping[int, bytes] | None:
        """Return the text of the control tokens that are to be written; None is none of them."""
        if not tokens:
            return None
        if not self._controls:
            self._controls = {token: text.encode() for text, token in self.model.vocab.control_tokens().items()}
        if tokens is True:
            return self._controls
        return {token: text for token, text in self._controls.items() if token in tokens}

    def _sampler(self, params: SamplingParams, logprobs: int | None) -> FastSampler | SamplerChain:
        vocab = self.model.vocab
        if covers(params):
            return FastSampler(vocab, params, n_logprobs=logprobs)
        if logprobs is not None:
            raise ValueError("logprobs: the samplers of these sampling parameters do not tell any")
        return params.chain(vocab)


def _params(sampling: SamplingParams | None, **given: Any) -> SamplingParams:
    """Return the parameters with what was given in place of theirs."""
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise TypeError(f"sampling must be SamplingParams, not {type(sampling).__name__}")
    return replace(sampling or SamplingParams(), **{key: value for key, value in given.items() if value is not None})


def _close(models: list[Model]) -> None:
    for model in models:
        model.close()


def _finalize(loop: Loop, models: list[Model]) -> None:
    """Close what an Engine has left open."""
    if loop.closed:
        return
    try:
        warnings.warn(f"unclosed {loop.name}: use `with`, or call close()", ResourceWarning, stacklevel=2)
    finally:  # the warning may be an error
        loop.close()
        _close(models)

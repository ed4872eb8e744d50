"""Engine: many requests at once on one model, for threads and for asyncio."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.chat_format import ChatFormat
from offgrid_llama.chat.chat_formats import ChatFormats
from offgrid_llama.chat.response_format import grammar_of
from offgrid_llama.model.model import Model
from offgrid_llama.model.params import ContextOptions
from offgrid_llama.native.check import callback, number, real, refuse_unknown
from offgrid_llama.native.handle import refuse_after_fork
from offgrid_llama.native.kinds import instance, path_of
from offgrid_llama.tasks.infill import fim_prompt, infill_options
from offgrid_llama.tasks.request_options import LoRAs, RequestArguments, RequestOptions

from .assembly import assemble
from .chat_completion import ChatCompletion
from .chat_options import ChatArguments, ChatOptions
from .closing import close_models, finalize
from .completion import Completion, Piece
from .drafter import check_draft
from .encoder import encoder_of
from .in_order import REQUESTS_PER_SEQUENCE, results
from .loras import checked_loras, named_loras, of_all_texts
from .planning.reasoning_budget import ReasoningBudget
from .runner import Runner, StepView
from .scoring import PAIRS_PER_SEQUENCE, Scoring
from .stats import EngineStats
from .submission import queue

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from offgrid_llama.media.projector import Projector
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.store.consent import Download
    from offgrid_llama.tasks.infill import ContextFiles

    from .media_prompt import AnyPrompt

__all__ = ["Engine"]

T = TypeVar("T")

DEFAULT_N_CTX_SEQ = 4096


class Engine(Scoring):
    """Generates for many callers at once (continuous batching): requests share each step, a common prefix is computed once.

    A request gets a sequence of the context, with the longest prefix of its prompt that another request has computed. Each
    step first serves the generating requests, with one token each. Prompts are computed in pieces, so that a long one does
    not stall the others.

    Args:
        model: a Model, or the name or path of one, which the engine then loads, and closes.
        n_seq_max: the most requests that generate at once; others wait in the queue.
        n_ctx: positions in all sequences together. Each sequence has ``n_ctx / n_seq_max``; with ``kv_unified=True`` they
            share them, and a request waits until there is room for its prompt and ``max_tokens``. None is the model's
            training length, up to 4,096, for each sequence.
        n_batch: the most tokens of a step; more than ``n_seq_max``.
        max_queue: the most requests that wait for a sequence; those that find a free one do not count.
        projector: sees and hears for the model, so that prompts and conversations can have pictures and sound: a Projector,
            or the path of one, which the engine then loads, and closes. A thread of its own encodes, each picture once.
        draft_model: a small model with the same vocabulary, or the name or path of one, for speculative decoding: it guesses
            the next tokens, and the model verifies several in one step, where that pays. The answers are the same, but for
            the rounding of larger batches.
        adapters: adapters of the model that requests can name in ``loras``: LoRAs, or files, which the engine then loads,
            and closes. They are not used unless a request names them.
        loras: adapters that all requests use which name none, by these names or as ``Context.set_loras`` takes them; they
            stay open as long as the engine.
        cache_bytes: host memory for prefixes that leave the KV cache: those of finished requests whose sequences others
            need, and, for models whose memory cannot be trimmed, shared beginnings of prompts. 0 is none.
        cache_dir: an existing folder for prefixes that do not fit into ``cache_bytes``; the engine deletes them at its end,
            and those of an engine that was killed at its start.
        cache_dir_bytes: the most bytes in that folder.
        stream_interval: the least seconds between two pieces of a stream: the steps within it run in one native call, and
            their text comes together. The first token of an answer never waits. 0 gives a piece for each step; 1/30 s,
            which few readers notice, saves small models much of the work around a step.
        on_step: called in the engine's thread in each step, before tokens are sampled, with a StepView: the answers of the
            step, and their logits as one writable array. An exception is logged, and harms no request.
        deterministic: give a request the same tokens after and beside any others: cold, from the prefix cache, alone and
            in a crowd. Without it, llama.cpp rounds batches of other shapes otherwise, and a close choice may fall
            otherwise, with a seed and at a temperature of 0, too. It computes one request in each step, and prompts in
            pieces of 128 tokens; nothing is guessed, and only whole pieces of prompts are cached, in the KV cache alone.
            One request is as fast as without it; eight at a time have 0.56 of the tokens a second (SmolLM2, two cores).
        download: what happens to the name of a model that is not on this machine yet; see Model.
        draft: the old name of ``draft_model``.
        context: further arguments of Context, such as ``n_threads``, ``type_k`` or ``flash_attn_type``.

    Raises ContextError; ValueError for a draft model, adapter or projector that does not fit; AdapterError for several
    adapters that tokens of the prompt switch on (aLoRA); OSError for a ``cache_dir`` that cannot be written to; and as
    Model and Projector do for a name or path.

    Attributes:
        model: the Model. adapters: its adapters by the names that requests know them by.
        n_ctx_seq: the most tokens of one request, prompt and answer together. n_seq_max: requests that run at a time.
        can_shift: whether a request with ``n_keep`` can go on where its sequence is full.
        projector: its Projector; None without one.
        sequences: its Sequences: what each holds, to be looked at, saved and loaded.
    """

    _instead = "threads and tasks can share one, and another process makes its own"

    _starts: ClassVar[bool] = True  # the loop's thread; a subclass without one makes each turn itself

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        *,
        n_seq_max: int = 8,
        n_ctx: int | None = None,
        n_batch: int = 512,
        max_queue: int = 10_000,
        projector: Projector | str | os.PathLike[str] | None = None,
        draft_model: Model | str | os.PathLike[str] | None = None,
        adapters: Mapping[str, LoRA | str | os.PathLike[str]] | None = None,
        loras: LoRAs = (),
        cache_bytes: int = 2**30,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_dir_bytes: int = 2**33,
        stream_interval: float = 0.0,
        on_step: Callable[[StepView], object] | None = None,
        deterministic: bool = False,
        download: Download = "auto",
        draft: Model | str | os.PathLike[str] | None = None,
        **context: Unpack[ContextOptions],
    ) -> None:
        refuse_unknown("Engine", context, {**ContextOptions.__annotations__, **(Engine.__init__.__kwdefaults__ or {})})
        if draft is not None:
            warnings.warn("Engine(draft=...) is now Engine(draft_model=...)", DeprecationWarning, stacklevel=2)
            draft_model = draft
        n_seq_max = number("n_seq_max", n_seq_max, 1, 256)
        n_batch = number("n_batch", n_batch, n_seq_max + 1)
        max_queue = number("max_queue", max_queue, 1)
        cache_bytes = number("cache_bytes", cache_bytes, 0, 2**63)
        cache_dir_bytes = number("cache_dir_bytes", cache_dir_bytes, 0, 2**63)
        stream_interval = real("stream_interval", stream_interval, 0, 1)
        if on_step is not None:
            callback("on_step", on_step)
        cache_dir = None if cache_dir is None else path_of("cache_dir", cache_dir)
        self._own: list[Model | LoRA | Projector] = []
        self.model: Model = self._load(model, download)
        try:
            small = None if draft_model is None else self._load(draft_model, download)
            if small is not None:
                check_draft(small, self.model)
            if n_ctx is None:
                n_ctx = n_seq_max * min(self.model.n_ctx_train or DEFAULT_N_CTX_SEQ, DEFAULT_N_CTX_SEQ)
            self.adapters, loaded = named_loras(self.model, adapters or {})
            self._own += loaded
            used = checked_loras(self.model, loras, self.adapters)
            self.projector, encoder = encoder_of(self.model, projector, self._own)
            runner = Runner(
                self.model, {**context, "n_ctx": n_ctx, "n_seq_max": n_seq_max, "n_batch": n_batch},
                on_step=on_step, draft_model=small, loras=dict(of_all_texts(used)),
                cache_dir=cache_dir, deterministic=deterministic, encoder=encoder,
            )  # fmt: skip
        except BaseException:
            close_models(self._own)
            raise
        parts = assemble(
            runner, encoder=encoder, adapters=self.adapters, loras=used, cache_bytes=0 if deterministic else cache_bytes,
            cache_dir_bytes=0 if cache_dir is None else cache_dir_bytes, max_queue=max_queue,
            stream_interval=stream_interval,
        )  # fmt: skip
        self._formats = ChatFormats(self.model)
        self.can_shift = runner.context.memory.can_shift
        self._n_pairs, self._concurrency = PAIRS_PER_SEQUENCE * n_seq_max, REQUESTS_PER_SEQUENCE * n_seq_max
        self.n_ctx_seq, self.n_seq_max, self.sequences = parts.n_ctx_seq, n_seq_max, parts.sequences
        self._submitter, self._loop = parts.submitter, parts.loop
        if self._starts:
            self._loop.start()
        self._finalizer = weakref.finalize(self, finalize, self._loop, self._own)

    def submit(self, prompt: AnyPrompt, **options: Unpack[RequestArguments]) -> Completion:
        """Queue a prompt to be completed, and return its Completion at once. From any thread.

        Args:
            prompt: text (str, or bytes of UTF-8), or token ids as they are; with a projector, also a list of texts, Images,
                Audios and token ids.
            options: ``max_tokens``, ``temperature``, ``stop``, ``n`` and so on: see RequestOptions, which lists them all.

        Raises:
            ContextLengthError: the prompt does not fit into ``n_ctx_seq``, with room for a token.
            QueueFullError: ``max_queue`` requests wait already.
            ClosedError: the engine or its model is closed, or the engine has failed.
            MediaError: a picture or a sound is damaged, or the projector does not take it.
            ValueError, TypeError, UnicodeError, TokenizeError, GrammarError: an argument is not as described.
        """
        return self._submit(prompt, RequestOptions.read("Engine.submit", options), cancels_if_interrupted=False)

    def _submit(
        self,
        prompt: AnyPrompt,
        options: RequestOptions,
        make_budget: Callable[[], ReasoningBudget] | None = None,
        *,
        cancels_if_interrupted: bool = True,
    ) -> Completion:
        refuse_after_fork()
        self._loop.check_open()
        requests = self._submitter.make(prompt, options, perf_counter(), make_budget)
        return queue(self._loop, requests, Completion, cancels_if_interrupted=cancels_if_interrupted)

    def generate(self, prompt: AnyPrompt, **options: Unpack[RequestArguments]) -> Completion:
        """Submit a prompt, wait for the end, and return the Completion. Takes the options of ``submit``.

        Raises as ``submit`` does, and the error of a request that fails. Ctrl-C cancels the request.
        """
        return self._submit(prompt, RequestOptions.read("Engine.generate", options)).result()

    def stream(self, prompt: AnyPrompt, **options: Unpack[RequestArguments]) -> Iterator[Piece]:
        """Submit a prompt, and return its pieces as they come. Takes the options of ``submit``.

        Dropping the iterator before its end cancels the rest; so does Ctrl-C while it waits.
        """
        return iter(self._submit(prompt, RequestOptions.read("Engine.stream", options)))

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        spm_infill: bool = False,
        files: ContextFiles = (),
        file_name: str = "",
        repo_name: str = "",
        **options: Unpack[RequestArguments],
    ) -> Completion:
        """Submit the text between ``prefix`` and ``suffix`` to be generated, and return its Completion at once.

        The parts of files and prefix that earlier requests have computed are not computed again. Cancel the Completion of
        one keystroke when the next one comes.

        Args:
            prefix, suffix, spm_infill, files, file_name, repo_name: see ``fim_prompt``.
            options: as ``submit`` takes them; see ``infill`` for the samplers.

        Raises TokenizeError for a model that was not trained for it; and as ``submit`` does.
        """
        checked = infill_options("Engine.infill", options)
        tokens = fim_prompt(
            self.model.vocab,
            prefix,
            suffix,
            spm_infill=spm_infill,
            files=files,
            file_name=file_name,
            repo_name=repo_name,
        )
        return self._submit(tokens, checked)

    async def generate_async(self, prompt: AnyPrompt, **options: Unpack[RequestArguments]) -> Completion:
        """Do what ``generate`` does, on an event loop. Cancelling the task cancels the request."""
        return await self._submit(prompt, RequestOptions.read("Engine.generate_async", options))

    def stream_async(self, prompt: AnyPrompt, **options: Unpack[RequestArguments]) -> AsyncIterator[Piece]:
        """Do what ``stream`` does, for ``async for``. Cancelling the task cancels the request."""
        return aiter(self._submit(prompt, RequestOptions.read("Engine.stream_async", options)))

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        response_format: type[T],
        **options: Unpack[ChatArguments],
    ) -> ChatCompletion[T]: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        response_format: object = None,
        **options: Unpack[ChatArguments],
    ) -> ChatCompletion[Any]: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        response_format: object = None,
        **options: Unpack[ChatArguments],
    ) -> ChatCompletion[Any]:
        """Submit a conversation, and return its ChatCompletion at once, as ``submit`` does.

        Ctrl-C, or the end of the task, in a wait for the answer cancels it.
        The contents of messages stay text: no control token comes from them, even where they look like one.

        Args:
            messages: dicts with "role" and "content", and any other keys that the template knows; a content may be a list of
                parts ``{"type": "text", "text": ...}``, and with a projector Images, Audios, and OpenAI's parts with a
                file: "image_url" with a ``data:`` URL, "input_audio". A system message, or two messages of a role in
                a row, that the template does not take become part of a user's message, or one message.
            response_format: the shape of the answer: a type, such as a Pydantic model or a dataclass, which ``parsed()``
                then returns; a Grammar; or one of OpenAI's dicts, such as ``{"type": "json_object"}``. Reasoning before
                the answer is free.
            options: ``tools``, ``template``, ``reasoning_budget`` and so on: see ChatOptions; and those of ``submit``.
                Tool calls are ``tool_calls`` of the answer: each is complete, names a known tool, and has arguments that
                match its schema. Rules that no grammar can hold are named once in the log, and ``warnings`` of the answer
                say which calls break one.

        Raises ChatTemplateError where there is no template, or it refuses the messages; GrammarError for a response format
        or tools that cannot be used; ValueError and TypeError for messages and tools of another shape; and as ``submit``
        does.
        """
        self._loop.check_open()
        asked, arguments = ChatOptions.split("Engine.chat", options)
        chat_format, use = self.chat_format(asked.template, tools=bool(asked.tools)), asked.use
        salt = instance("cache_salt", arguments.get("cache_salt", ""), str)
        prompt, make_budget = asked.prompt(messages, chat_format, salt)
        grammar = grammar_of(response_format)
        given = (arguments.get("grammar"), getattr(arguments.get("sampling"), "grammar", None))
        if given != (None, None) and (grammar is not None or use.allowed):
            other = "tools" if grammar is None else "response_format"
            raise ValueError(f"{other} and grammar both constrain the answer; leave one of them out")
        if grammar is not None or use.allowed:
            arguments["grammar"] = chat_format.grammar(grammar, prompt, use)
        arguments.setdefault("unparse_special", chat_format.shown)
        completion = self._submit(prompt.tokens, RequestOptions.read("Engine.chat", arguments), make_budget)
        return ChatCompletion(
            completion, chat_format, prompt=prompt.token_ids, tools=use.allowed, inside=prompt.inside,
            split_reasoning=asked.split_reasoning, response_format=response_format, bare=asked.bare(grammar),
        )  # fmt: skip

    def map(
        self,
        items: Iterable[AnyPrompt | Sequence[Mapping[str, Any]]],
        *,
        concurrency: int | None = None,
        return_exceptions: bool = False,
        **options: Unpack[ChatArguments],
    ) -> Iterator[Any]:
        """Yield the answers to many prompts or conversations, in their order, each when it has ended.

        Items are taken when they are submitted, so that they may come from a file of any length. The end of the iterator
        cancels what still runs.

        Args:
            items: prompts, as ``submit`` takes them, answered by Completions; or conversations, as ``chat`` takes them,
                answered by ChatCompletions.
            concurrency: how many are submitted at once. None is four for each sequence.
            return_exceptions: yield the error of an item in the place of its answer, rather than raise it and cancel the
                others.
            options: of ``submit``; for conversations those of ``chat``.

        Raises as ``submit`` and ``chat`` do, and the error of a request that fails.
        """
        most = number("concurrency", self._concurrency if concurrency is None else concurrency, 1)
        if isinstance(items, (str, bytes)):
            raise TypeError("items must be prompts or conversations, not one text; put it into a list")

        def submit(item: Any) -> Completion | ChatCompletion[Any]:
            is_conversation = isinstance(item, (list, tuple)) and item and isinstance(item[0], Mapping)
            return self.chat(item, **options) if is_conversation else self.submit(item, **options)  # type: ignore[misc]

        return results(submit, items, most, return_exceptions=return_exceptions)

    def set_n_threads(self, n_threads: int) -> None:
        """Set the threads of each step, from the next one on (``llama_set_n_threads``). From any thread.

        Two engines that compute at the same time, each with all cores, slow each other down by far more than half, because
        one thread waits for another that is descheduled. Give each engine its share of the cores.
        """
        self._loop.check_open()
        self._loop.set_n_threads(number("n_threads", n_threads, 1, 512))

    def set_loras(self, loras: LoRAs) -> None:
        """Use these adapters for requests that are submitted from now on. Raises as the ``loras`` of the class do."""
        self._loop.check_open()
        self._submitter.set_loras(loras)

    def stats(self) -> EngineStats:
        """Return the engine's counters and its present load. From any thread."""
        return self._loop.stats()

    def chat_format(self, template: ChatTemplate | str | None = None, *, tools: bool = False) -> ChatFormat:
        """Return the ChatFormat of a template, as ``ChatFormats.of`` does; it is computed once."""
        return self._formats.of(template, tools=tools)

    def _load(self, model: Model | str | os.PathLike[str], download: Download) -> Model:
        """Return a Model; one that is loaded here is closed with the engine."""
        if isinstance(model, Model):
            return model
        loaded = Model(model, download=download)
        self._own.append(loaded)
        return loaded

"""Service: a model, and what answers requests with it. The worker's half of the server; it knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from ..adapter import LoRA
from ..backend import default_threads
from ..chat import ChatTemplate
from ..embedding import Embedder
from ..engine import Completion, Engine, FinishReason
from ..errors import (
    ChatTemplateError,
    ClosedError,
    ContextError,
    ContextLengthError,
    GrammarError,
    OffgridLlamaError,
    QueueFullError,
    TokenizeError,
    ToolError,
)
from ..infill import INFILL_SAMPLERS, fim_prompt
from ..model import Model
from ..params import PoolingType
from ..reranking import Reranker
from . import frames
from .frames import Channel
from .options import chat_options, request_options

if TYPE_CHECKING:
    from ..engine import ChatCompletion

__all__ = ["Service", "failure"]

_THEIR_FAULT = (
    ChatTemplateError, ContextLengthError, GrammarError, TokenizeError, ToolError, ValueError, TypeError, UnicodeError,
)  # fmt: skip


def failure(id_: int, error: BaseException) -> frames.Failed:
    """Return what a client is told of an error."""
    message = error.message if isinstance(error, OffgridLlamaError) else str(error)
    if isinstance(error, ContextLengthError):
        return frames.Failed(id_, 400, message, "context_length_exceeded", "messages")
    if isinstance(error, QueueFullError):
        return frames.Failed(id_, 503, message, "queue_full")
    if isinstance(error, _THEIR_FAULT):
        return frames.Failed(id_, 400, message, "invalid_value")
    if isinstance(error, ClosedError):
        return frames.Failed(id_, 503, message, "model_closed")
    return frames.Failed(id_, 500, f"{type(error).__name__}: {message}", "internal_error")


class Service:
    """Loads a model, and answers.

    Args:
        file: the model's GGUF file.
        engine: arguments of Engine; ``draft`` may be a file.
        model: arguments of Model.
        sampling: SamplingParams where a request says nothing.
        template: a chat template in place of the model's.
        loras: files of adapters that are in use, with their scales.
        progress: called with the share of the model that is loaded.

    Raises as Model and Engine do.
    """

    def __init__(
        self,
        file: str,
        *,
        engine: Mapping[str, Any],
        model: Mapping[str, Any],
        sampling: Mapping[str, Any],
        template: str | None = None,
        loras: Mapping[str, float] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self._model = Model(file, progress=progress, **model)
        self._sampling = dict(sampling)
        self._template = None
        self._engine: Engine | None = None
        try:
            self._loras = {LoRA(self._model, path): scale for path, scale in (loras or {}).items()}
            if template is not None:
                self._template = ChatTemplate.of(self._model, template)
            elif self._model.chat_template() is not None:
                self._template = ChatTemplate.of(self._model)
            if not self._embeds_only:
                self._engine = Engine(self._model, loras=self._loras, **engine)
        except BaseException:
            self._model.close()
            raise
        self._threads: int | None = engine.get("n_threads")
        self._pooled: dict[str, Embedder | Reranker] = {}
        self._lock = threading.Lock()  # for the above; one at a time computes there
        self._pool = ThreadPoolExecutor(4, "offgrid_llama requests")
        self._one = ThreadPoolExecutor(1, "offgrid_llama embedding")

    @property
    def _embeds_only(self) -> bool:
        metadata = self._model.metadata
        causal = metadata.get(f"{metadata.get('general.architecture')}.attention.causal")
        return causal == "false" or self._model.has_encoder

    def info(self) -> dict[str, Any]:
        """Return what there is to tell of the model."""
        model = self._model
        return {
            "n_ctx_train": model.n_ctx_train, "n_ctx": self._engine.n_ctx_seq if self._engine is not None else None,
            "n_params": model.n_params, "n_embd": model.n_embd, "n_vocab": model.vocab.n_tokens, "size": model.size,
            "description": model.description, "chat": self._template is not None and self._engine is not None,
            "generates": self._engine is not None,
        }  # fmt: skip

    def set_n_threads(self, n: int) -> None:
        """Let the engine compute with so many threads, at most as many as it was made with."""
        if self._engine is not None and not self._engine.closed:
            self._engine.set_n_threads(min(n, self._threads or default_threads()))

    def stats(self) -> dict[str, float]:
        """Return the numbers of EngineStats; those of ``finished`` as ``finished_REASON``."""
        if self._engine is None:
            return {}
        stats = asdict(self._engine.stats())
        finished: dict[str, int] = stats.pop("finished")
        return {**stats, **{f"finished_{reason}": n for reason, n in finished.items()}}

    # Generating ---------------------------------------------------------------------------------------------------------

    async def generate(self, asked: frames.Generate, channel: Channel) -> None:
        """Answer a request, and tell what it has failed with. When this is cancelled, so is the request."""
        try:
            if asked.kind == "chat":
                await self._chat(asked, channel)
            else:
                await self._complete(asked, channel)
        except Exception as error:
            channel.send(failure(asked.id, error))

    def _generating(self) -> Engine:
        if self._engine is None:
            raise ValueError("this model makes vectors of texts, or ranks them; it does not write any")
        return self._engine

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    def _submit_chat(self, asked: frames.Generate) -> ChatCompletion:
        engine, request = self._generating(), asked.request
        if self._template is None:
            raise ChatTemplateError("the model has no chat template: give it one in the server's settings")
        options = request_options(request, engine, self._sampling)
        if request.get("logprobs"):
            options["logprobs"] = request.get("top_logprobs") or 0
        return engine.chat(
            self._messages(request["messages"]), template=self._template, **chat_options(request), **options,
            cache_salt=asked.partition,
        )  # fmt: skip

    def _messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages whose "developer" is the system, unless the template knows one."""
        knows = self._template is not None and "developer" in self._template.source
        return [
            {**each, "role": "system"} if each.get("role") == "developer" and not knows else dict(each)
            for each in messages
        ]

    async def _chat(self, asked: frames.Generate, channel: Channel) -> None:
        with await self._in_thread(self._submit_chat, asked) as reply:
            completion = reply.completion
            if asked.stream:
                async for delta in reply:
                    calls = [
                        frames.CallPart(each.index, each.id, each.name, each.arguments) for each in delta.tool_calls
                    ]
                    channel.send(
                        frames.Part(
                            asked.id,
                            delta.index,
                            delta.content,
                            delta.reasoning,
                            calls,
                            self._logprobs(delta.tokens, delta.logprobs),
                            None if delta.finish_reason is None else delta.finish_reason.value,
                            len(delta.tokens),
                        )
                    )
                channel.send(_answered(asked.id, [completion], []))
                return
            await reply
            messages = []
            for index, answer in enumerate(completion.answers):
                message = reply.message(index)
                calls = [
                    frames.CallPart(i, call["id"], call["function"]["name"], call["function"]["arguments"])
                    for i, call in enumerate(message.get("tool_calls", ()))
                ]
                reason = answer.finish_reason or FinishReason.STOP
                reason = FinishReason.TOOL_CALLS if calls and reason is FinishReason.STOP else reason
                messages.append(
                    frames.Message(
                        message["content"],
                        message.get("reasoning_content", ""),
                        calls,
                        reason.value,
                        self._logprobs(answer.tokens, answer.logprobs),
                    )
                )
            channel.send(_answered(asked.id, [completion], messages))

    def _submit_texts(self, asked: frames.Generate) -> list[Completion]:
        engine, request = self._generating(), asked.request
        usual = {"samplers": INFILL_SAMPLERS} if request.get("suffix") else {}
        options = request_options(request, engine, {**usual, **self._sampling})
        if request.get("logprobs") is not None:
            options["logprobs"] = request["logprobs"]
        prompts = _prompts(request["prompt"])
        if request.get("suffix"):
            vocab = engine.model.vocab
            prompts = [fim_prompt(vocab, _text(prompt), request["suffix"]) for prompt in prompts]
        completions: list[Completion] = []
        try:
            for prompt in prompts:
                completions.append(engine.submit(prompt, **options, cache_salt=asked.partition))  # noqa: PERF401
        except BaseException:
            for completion in completions:
                completion.cancel()
            raise
        return completions

    async def _complete(self, asked: frames.Generate, channel: Channel) -> None:
        completions: list[Completion] = await self._in_thread(self._submit_texts, asked)
        begins = [
            self._text_of(prompt) if asked.request.get("echo") else "" for prompt in _prompts(asked.request["prompt"])
        ]

        async def stream(at: int, completion: Completion) -> None:
            begun: set[int] = set()
            async for piece in completion:
                text = piece.text if piece.index in begun else begins[at] + piece.text
                begun.add(piece.index)
                reason = None if piece.finish_reason is None else piece.finish_reason.value
                channel.send(
                    frames.Part(
                        asked.id,
                        at * len(completion.answers) + piece.index,
                        text,
                        logprobs=self._logprobs(piece.tokens, piece.logprobs),
                        finish_reason=reason,
                        n_tokens=len(piece.tokens),
                    )
                )

        try:
            if asked.stream:
                await asyncio.gather(*(stream(at, completion) for at, completion in enumerate(completions)))
                messages = []
            else:
                for completion in completions:
                    await completion
                messages = [
                    frames.Message(
                        begin + answer.text, "", [], (answer.finish_reason or FinishReason.STOP).value,
                        self._logprobs(answer.tokens, answer.logprobs),
                    )
                    for begin, completion in zip(begins, completions, strict=True)
                    for answer in completion.answers
                ]  # fmt: skip
            channel.send(_answered(asked.id, completions, messages))
        finally:
            for completion in completions:
                completion.cancel()

    def _logprobs(
        self, tokens: Sequence[int], logprobs: Sequence[tuple[float, list[tuple[int, float]]]]
    ) -> list[frames.TokenLogprob] | None:
        if not logprobs:
            return None
        piece = self._model.vocab.piece
        return [
            frames.TokenLogprob(piece(token), own, [(piece(other), each) for other, each in top])
            for token, (own, top) in zip(tokens, logprobs, strict=False)
        ]

    def _text_of(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._model.vocab.detokenize(prompt, unparse_special=True)

    # All else -----------------------------------------------------------------------------------------------------------

    async def call(self, asked: frames.Call, channel: Channel) -> None:
        """Do what takes one step, and tell what it has given or failed with."""
        does: dict[str, Callable[..., Any]] = {
            "embed": self._embed, "rerank": self._rerank, "tokenize": self._tokenize, "detokenize": self._detokenize,
            "template": self._render, "stats": self.stats,
        }  # fmt: skip
        pool = self._one if asked.what in ("embed", "rerank") else self._pool
        try:
            value = await asyncio.get_running_loop().run_in_executor(pool, partial(does[asked.what], **asked.arguments))
            channel.send(frames.Result(asked.id, value))
        except Exception as error:
            channel.send(failure(asked.id, error))

    def _embed(self, texts: list[str | list[int]]) -> dict[str, Any]:
        embedder = self._pooling("embed", self._embedder)
        tokens = [self._model.vocab.tokenize(each) if isinstance(each, str) else each for each in texts]
        vectors = embedder.embed(tokens)
        return {"data": vectors.tobytes(), "n_embd": vectors.shape[1], "n_tokens": sum(map(len, tokens))}

    def _rerank(self, query: str, documents: list[str], top_n: int | None) -> list[list[float]]:
        try:
            reranker = self._pooling(
                "rerank", lambda: Reranker(self._model, n_threads=self._threads, loras=self._loras)
            )
        except ContextError as error:
            raise ValueError(f"this model does not rank documents: {error.message}") from error
        return [list(each) for each in reranker.rank(query, documents, top_n=top_n)]

    def _tokenize(self, text: str, add_special: bool, parse_special: bool, with_pieces: bool) -> dict[str, Any]:
        vocab = self._model.vocab
        tokens = vocab.tokenize(text, add_special=add_special, parse_special=parse_special)
        return {
            "tokens": tokens,
            "pieces": [vocab.piece(token, special=True) for token in tokens] if with_pieces else None,
        }

    def _detokenize(self, tokens: list[int]) -> str:
        return self._model.vocab.detokenize(tokens, unparse_special=True)

    def _render(self, request: dict[str, Any]) -> str:
        if self._template is None:
            raise ChatTemplateError("the model has no chat template")
        options = chat_options(request)
        variables = {**options["variables"], **({"tools": options["tools"]} if options["tools"] else {})}
        messages = self._messages(request["messages"])
        if options["continue_final_message"]:
            return "".join(part.text for part in self._template.parts_to_continue(messages, **variables))
        add = request.get("add_generation_prompt")
        return self._template.render(messages, add_generation_prompt=True if add is None else add, **variables)

    def _embedder(self) -> Embedder:
        """Return an Embedder that pools as the model wants, or by the mean where it says nothing of that."""
        embedder = Embedder(self._model, n_threads=self._threads, loras=self._loras)
        if embedder.pooling_type is not PoolingType.NONE:
            return embedder
        embedder.close()
        return Embedder(self._model, pooling_type="mean", n_threads=self._threads, loras=self._loras)

    def _pooling(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what is made once, when it is first asked for."""
        with self._lock:
            if what not in self._pooled:
                self._pooled[what] = make()
            return self._pooled[what]

    def close(self) -> None:
        """End all requests, and free the model."""
        if self._engine is not None:
            self._engine.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._one.shutdown(wait=True, cancel_futures=True)
        self._model.close()


def _answered(id_: int, completions: Sequence[Completion], messages: list[frames.Message]) -> frames.Answered:
    usages = [completion.usage for completion in completions]
    usage = frames.Usage(
        sum(each.prompt_tokens for each in usages), sum(each.cached_tokens for each in usages),
        sum(each.completion_tokens for each in usages),
    )  # fmt: skip
    return frames.Answered(id_, usage, messages, completions[0].timings.first_token)


def _prompts(prompt: Any) -> list[str | list[int]]:
    """Return the prompts of a request: a text, or token ids, or several of either."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _text(prompt: str | list[int]) -> str:
    if not isinstance(prompt, str):
        raise ValueError("prompt must be a text where there is a suffix")
    return prompt

"""Requests that generate: from a Generate frame to the engine, and from the engine to Chunks or Messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.chat_format import ChatFormat
from offgrid_llama.chat.media_parts import has_media
from offgrid_llama.engine import Answer, ChatCompletion, Completion, Delta, Engine, FinishReason, Piece
from offgrid_llama.engine.chat_options import ChatArguments, ChatOptions
from offgrid_llama.errors import ContextLengthError
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.vocab import Vocab
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.tasks.infill import INFILL_SAMPLERS

from .answered import answered_with, counts
from .arguments import chat_arguments, check_template, request_arguments
from .channel import Channel
from .details import Told
from .failures import RequestError, client_data
from .fair_pool import FairPool
from .frames import (
    CallChunk,
    Chunk,
    Generate,
    Message,
    PromptLogprob,
    TokenLogprob,
)
from .generation import Conversation, Texts
from .logprobs import best_answers, check_told, end_logprob, prompt_logprobs, token_logprobs
from .prompts import n_prompt_tokens, tokens_of
from .shortening import Messages, shortened

__all__ = ["ChatRequests", "TextRequests"]

MAX_ROOM_PART = 4
"""A conversation that is shortened leaves one in this many tokens of its sequence to the answer, at most."""


class ChatRequests:
    """Answers conversations.

    Args:
        engine: generates the answers.
        template: of the conversations; None is the model's own.
        sampling: SamplingParams for requests that do not set them.
        threads: for work that would block the event loop.
        loras: the model's adapters, which requests know by their numbers.
        stop: texts that end an answer, besides those of a request.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | None,
        sampling: Mapping[str, Any],
        threads: FairPool,
        loras: Sequence[LoRA] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._vocab = engine.model.vocab
        self._template = template
        self._sampling = sampling
        self._loras = loras
        self._stop = stop
        self._threads = threads

    async def answer(self, asked: Generate, what: Conversation, channel: Channel) -> None:
        """Send an answer. When this is cancelled, the request is cancelled."""
        reply, told, n_left_out = await self._threads.run(asked.partition, self._submit, what, asked.partition)
        with reply:
            reply.in_thread = partial(self._threads.run, asked.partition)
            if asked.stream:
                thinks = await self._stream(asked.id, reply, told, channel)
                messages = []
            else:
                await reply
                messages = [self._message(reply, told, index) for index in range(len(reply.completion.answers))]
                thinks = any(message.reasoning for message in messages)
            answered = answered_with(asked.id, [reply.completion], messages, reply.warnings)
            if thinks:
                answered.tokens.reasoning = await self._threads.run(asked.partition, _reasoning_tokens, reply)
            if n_left_out:
                place = what.names.get("messages", "messages")
                answered.warnings.append(f"{place}: the oldest {n_left_out} were left out, as all are too long")
            if what.tell_tokens:
                answered.told_tokens = _told_tokens(self._vocab, told.prompt, reply.completion)
            if what.options.prompt_logprobs is not None:
                found = prompt_logprobs, self._vocab, told.prompt, reply.completion, None
                answered.prompts = [await self._threads.run(asked.partition, *found)]
            channel.send(answered)

    def _submit(self, asked: Conversation, partition: str) -> tuple[ChatCompletion[Any], Told, int]:
        """Return what answers a conversation, what is told of it, and how many of its messages were left out."""
        if asked.template is None:
            check_template(self._engine.model, self._template)
        with client_data(asked.names, asked.n_completion):
            if self._engine.projector is None and has_media(asked.messages):
                raise RequestError("this model takes no pictures and no sound", param="messages")
            options = request_arguments(
                asked.options, self._engine.n_ctx_seq, self._sampling, self._vocab, self._loras,
                can_shift=self._engine.can_shift and not has_media(asked.messages),
            )  # fmt: skip
            arguments: ChatArguments = {
                **options, **chat_arguments(asked), "template": asked.template or self._template,
                "stop": [*asked.options.stop, *self._stop], "cache_salt": partition, "tenant": partition,
            }  # fmt: skip
            if asked.reasons and self._format(arguments).reasoning is None:
                raise RequestError("this model does not support thinking")
            chat = partial(self._engine.chat, response_format=asked.response_format, **arguments)
            messages: Messages = asked.messages
            try:
                reply = chat(messages)
                if asked.options.prompt_logprobs is not None:
                    check_told(len(reply.prompt), asked.options.prompt_logprobs, "prompt_logprobs")
            except ContextLengthError:
                kept = self._shortened(asked, arguments) if asked.truncate else None
                if kept is None:
                    raise
                messages, reply = kept, chat(kept)
        told = Told(self._engine, asked.options, options["sampling"] or SamplingParams(), reply.prompt)
        return reply, told, len(asked.messages) - len(messages)

    def _format(self, arguments: ChatArguments) -> ChatFormat:
        return self._engine.chat_format(arguments["template"], tools=bool(arguments["tools"]))

    def _shortened(self, asked: Conversation, arguments: ChatArguments) -> Messages | None:
        """Return a conversation without its oldest messages, with room for an answer; None where that does not help."""
        options, _ = ChatOptions.split("chat", arguments)
        chat_format, n_ctx_seq = self._format(arguments), self._engine.n_ctx_seq

        def n_tokens(messages: Messages) -> int:
            prompt, _ = options.prompt(messages, chat_format, arguments["cache_salt"])
            return n_prompt_tokens(prompt, self._engine.projector)

        room = min(asked.options.max_tokens or n_ctx_seq, n_ctx_seq // MAX_ROOM_PART)
        return shortened(asked.messages, n_tokens, n_ctx_seq - max(1, room))

    async def _stream(self, id_: int, reply: ChatCompletion[Any], told: Told, channel: Channel) -> bool:
        """Send the deltas of an answer; return whether there is reasoning among them."""
        is_first, thinks = True, False
        async for delta in reply:
            chunk = self._chunk(id_, delta, reply, told)
            if is_first:
                chunk.tokens, is_first = counts([reply.completion]), False
            thinks |= bool(delta.reasoning)
            channel.send(chunk)
        return thinks

    def _chunk(self, id_: int, delta: Delta, reply: ChatCompletion[Any], told: Told) -> Chunk:
        answer = reply.completion.answers[delta.index]
        calls = [CallChunk(call.index, call.id, call.name, call.arguments) for call in delta.tool_calls]
        chunk = Chunk(
            id_, delta.index, delta.content, delta.reasoning, calls,
            token_logprobs(self._vocab, delta.tokens, delta.logprobs) if delta.logprobs else None,
            None if delta.finish_reason is None else delta.finish_reason.value, len(delta.tokens),
            n_computed=delta.n_computed,
        )  # fmt: skip
        if delta.finish_reason is not None:
            chunk.warnings, chunk.stop = list(delta.warnings), answer.stop or ""
        return told.of(chunk, answer, delta.tokens)

    def _message(self, reply: ChatCompletion[Any], told: Told, index: int) -> Message:
        answer, message = reply.completion.answers[index], reply.message(index)
        calls = [
            CallChunk(i, call["id"], call["function"]["name"], call["function"]["arguments"])
            for i, call in enumerate(message.get("tool_calls", ()))
        ]
        reason = reply.finish_reason_of(index) or FinishReason.STOP
        logprobs = token_logprobs(self._vocab, answer.tokens, answer.logprobs) if answer.logprobs else None
        reasoning, stop = message.get("reasoning_content", ""), answer.stop or ""
        return Message(message["content"], reasoning, calls, reason.value, logprobs, stop, told.details(answer))


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was submitted, the echo before its answers, and what is told of them.

    Attributes:
        tells_end: whether the token that ends an answer is told with its logprobs, behind those of the prompt.
    """

    completion: Completion
    echo: str
    told: Told
    tells_end: bool = False

    @property
    def is_computed(self) -> bool:
        """Whether the logprobs of the whole prompt are known: its first answer has begun, or has ended."""
        first = self.completion.answers[0]
        return first.first_token is not None or first.finish_reason is not None


class TextRequests:
    """Completes prompts.

    Args:
        engine: generates the completions.
        sampling: SamplingParams for requests that do not set them.
        threads: for work that would block the event loop.
        loras: the model's adapters, which requests know by their numbers.
    """

    def __init__(
        self, engine: Engine, sampling: Mapping[str, Any], threads: FairPool, loras: Sequence[LoRA] = ()
    ) -> None:
        self._engine = engine
        self._vocab = engine.model.vocab
        self._sampling = sampling
        self._loras = loras
        self._threads = threads

    async def answer(self, asked: Generate, what: Texts, channel: Channel) -> None:
        """Send the completions of all prompts. When this is cancelled, the request is cancelled."""
        prompts: list[_Prompt] = []
        try:
            # Each prompt is a call of its own, between which other clients have their turn.
            for submit in await self._threads.run(asked.partition, self._submissions, what, asked.partition):
                prompts.append(await self._threads.run(asked.partition, submit))  # noqa: PERF401 - for finally
            if asked.stream:
                n = what.options.n
                await asyncio.gather(
                    *(self._stream(asked, channel, prompt, at * n) for at, prompt in enumerate(prompts))
                )
                messages = []
            else:
                messages = [message for prompt in prompts for message in await self._messages(prompt)]
            answered = answered_with(asked.id, [prompt.completion for prompt in prompts], messages)
            if what.options.max_tokens == 0:
                answered.tokens.completion = 0
            if what.options.prompt_logprobs is not None and not asked.stream:
                answered.prompts = [await self._prompt_logprobs(asked, prompt) for prompt in prompts]
            if what.tell_tokens:
                answered.told_tokens = _told_tokens(self._vocab, prompts[0].told.prompt, prompts[0].completion)
            channel.send(answered)
        finally:
            for prompt in prompts:
                prompt.completion.cancel()

    def _submissions(self, asked: Texts, partition: str) -> list[Callable[[], _Prompt]]:
        """Return for each prompt the function that submits it."""
        with client_data(asked.names):
            defaults = self._sampling if asked.suffix is None else {"samplers": INFILL_SAMPLERS, **self._sampling}
            arguments = request_arguments(
                asked.options, self._engine.n_ctx_seq, defaults, self._vocab, self._loras,
                can_shift=self._engine.can_shift,
            )  # fmt: skip
            arguments["cache_salt"] = arguments["tenant"] = partition
        params = arguments["sampling"] or SamplingParams()
        n_top, n_told = asked.options.prompt_logprobs, 0

        def submission(prompt: Any, place: str) -> _Prompt:
            with client_data({**asked.names, "prompt": place, "text": place}, asked.n_completion):
                tokens = tokens_of(prompt, asked, self._vocab)
                if n_top is not None:
                    nonlocal n_told
                    n_told += len(tokens) * asked.options.n
                    check_told(n_told, n_top, asked.names.get("prompt_logprobs", "prompt_logprobs"))
                completion = self._engine.submit(tokens, **arguments)
            echo = self._text(prompt, tokens) if asked.echo else ""
            told = Told(self._engine, asked.options, params, tokens)
            return _Prompt(completion, echo, told, tells_end=asked.echo and n_top is not None)

        field = asked.names.get("prompt", "prompt")
        places = [f"{field}[{at}]" for at in range(len(asked.prompts))] if len(asked.prompts) > 1 else [field]
        return [partial(submission, prompt, place) for prompt, place in zip(asked.prompts, places, strict=True)]

    async def _stream(self, asked: Generate, channel: Channel, prompt: _Prompt, first: int) -> None:
        """Send the pieces of one prompt's answers, whose indices begin at ``first``, each answer behind its echo."""
        begun: set[int] = set()
        wants_logprobs = prompt.told.options.prompt_logprobs is not None
        held: list[Piece] = []
        found: list[PromptLogprob] | None = None
        async for piece in prompt.completion:
            if piece.n_computed is not None:
                channel.send(self._chunk(asked.id, prompt, piece, first))
                continue
            held.append(piece)
            if wants_logprobs and found is None:
                if not prompt.is_computed:
                    continue
                found = await self._prompt_logprobs(asked, prompt)
            for each in held:
                chunk = self._chunk(asked.id, prompt, each, first)
                if each.index not in begun:
                    chunk.content, chunk.prompt = prompt.echo + chunk.content, found
                    begun.add(each.index)
                channel.send(chunk)
            held = []

    def _chunk(self, id_: int, prompt: _Prompt, piece: Piece, first: int) -> Chunk:
        answer = prompt.completion.answers[piece.index]
        has_ended = piece.finish_reason is not None
        logprobs = token_logprobs(self._vocab, piece.tokens, piece.logprobs) if piece.logprobs else None
        if has_ended and prompt.tells_end:
            logprobs = [*(logprobs or ()), *end_logprob(self._vocab, answer)] or None
        chunk = Chunk(
            id_, first + piece.index, piece.text, logprobs=logprobs,
            finish_reason=None if piece.finish_reason is None else piece.finish_reason.value, n_tokens=len(piece.tokens),
            stop=(answer.stop or "") if has_ended else "", n_computed=piece.n_computed,
        )  # fmt: skip
        return prompt.told.of(chunk, answer, piece.tokens)

    async def _messages(self, prompt: _Prompt) -> list[Message]:
        await prompt.completion
        silent, options = prompt.told.is_silent, prompt.told.options
        answers = prompt.completion.answers
        if options.best_of is not None:
            answers = best_answers(answers, options.n)
        return [
            Message(
                prompt.echo if silent else prompt.echo + answer.text, "", [],
                (FinishReason.LENGTH if silent else answer.finish_reason or FinishReason.STOP).value,
                None if silent else self._answer_logprobs(prompt, answer), answer.stop or "", prompt.told.details(answer),
            )
            for answer in answers
        ]  # fmt: skip

    def _answer_logprobs(self, prompt: _Prompt, answer: Answer) -> list[TokenLogprob] | None:
        if prompt.told.options.logprobs is None:
            return None
        found = token_logprobs(self._vocab, answer.tokens, answer.logprobs)
        return [*found, *(end_logprob(self._vocab, answer) if prompt.tells_end else ())] or None

    async def _prompt_logprobs(self, asked: Generate, prompt: _Prompt) -> list[PromptLogprob]:
        """Return the logprobs of a prompt's tokens, made in a thread: there may be many."""
        found: list[PromptLogprob] = await self._threads.run(
            asked.partition, prompt_logprobs, self._vocab, prompt.told.prompt, prompt.completion,
            prompt.echo if prompt.tells_end else None,
        )  # fmt: skip
        return found

    def _text(self, prompt: Any, tokens: Sequence[int]) -> str:
        return prompt if isinstance(prompt, str) else self._vocab.detokenize(tokens, unparse_special=True)


def _told_tokens(vocab: Vocab, prompt: Sequence[int], completion: Completion) -> list[int]:
    """Return the token ids of a prompt and its first answer, with the one that has ended it."""
    answer = completion.answers[0]
    end = vocab.eos if vocab.eot is None else vocab.eot
    is_whole = answer.finish_reason is FinishReason.STOP and not answer.stop
    return [*prompt, *answer.tokens, *([end] if is_whole and end is not None else [])]


def _reasoning_tokens(reply: ChatCompletion[Any]) -> int:
    return sum(reply.reasoning_tokens(index) for index in range(len(reply.completion.answers)))

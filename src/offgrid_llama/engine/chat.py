"""ChatCompletion and Chat: conversations, on an Engine's completions."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat.message_reader import MessageReader
from ..chat.response_format import parse_as
from ..chat.tool import Tool, ToolCall, read_tools
from ..chat.tool_reader import CallDelta, Told, ToolReader, gathered
from .completion import Completion, Piece, Timings, TokenLogprobs, Usage
from .request import FinishReason

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..chat.reasoning import Reasoning
    from .chat_format import ChatFormat
    from .engine import Engine

__all__ = ["Chat", "ChatCompletion", "Delta"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class Delta:
    """Some of a message, as it comes.

    Attributes:
        content: of the answer.
        reasoning: of what was thought before it.
        tool_calls: of calls of tools: the first of a call has its id and name, all more of its arguments.
        index: which of the ``n`` messages it is of.
        finish_reason: why the message ends with this delta; None before.
        tokens: the token ids that have come since the message's last delta.
        logprobs: for each of them, as those of Piece; empty unless asked for.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[CallDelta] = ()
    index: int = 0
    finish_reason: FinishReason | None = None
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()


class ChatCompletion:
    """What a conversation is answered with: one message, or ``n``.

    Iterate over it for deltas as they come (``for``, or ``async for``), call ``result()`` or ``await`` it for the whole;
    each may be done more than once. When the last reference to it goes, or its ``with`` block ends, what is still running is
    cancelled.

    Attributes:
        completion: the Completion that it reads.
    """

    def __init__(
        self,
        completion: Completion,
        chat_format: ChatFormat,
        *,
        tools: Sequence[Tool] = (),
        inside: bool = False,
        split_reasoning: bool = True,
        response_format: object = None,
    ) -> None:
        self.completion = completion
        self._format = chat_format
        self._tools = tools
        self._inside = inside
        self._reasoning: Reasoning | None = chat_format.reasoning if split_reasoning else None
        self._response_format = response_format
        # Of calls: with two digits for the call and one for the message these are nine, as some templates want.
        self._id = secrets.token_hex(3)

    def __repr__(self) -> str:
        return f"<ChatCompletion {self.content!r}>"

    def _reader(self, index: int) -> MessageReader:
        """Return a new reader of the message of an index."""

        def new_id(call: int) -> str:
            return f"{self._id}{_DIGITS[index % 36]}{_DIGITS[call // 36 % 36]}{_DIGITS[call % 36]}"

        form = self._format.tools
        parts = form.heads is not None
        tools = ToolReader(form, self._tools, new_id) if self._tools or parts else None
        return MessageReader(self._reasoning, inside=self._inside, tools=tools, parts=parts)

    def message(self, index: int = 0) -> dict[str, Any]:
        """Return a message, as far as it is, as it belongs into the next conversation.

        It has "role", "content", and "reasoning_content" and "tool_calls" where there are any.
        """
        told = self._told(index)
        message: dict[str, Any] = {"role": "assistant", "content": told.content}
        if told.reasoning:
            message["reasoning_content"] = told.reasoning
        if told.calls:
            message["tool_calls"] = [call.as_dict() for call in gathered(told.calls)]
        return message

    def _told(self, index: int) -> Told:
        """Return what there is of a message, as far as it is."""
        answer = self.completion.answers[index]
        reader = self._reader(index)
        told = reader.push(answer.text)
        return told if answer.finish_reason is None else told.followed_by(reader.finish())

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The first message's calls of tools, as far as they are."""
        return gathered(self._told(0).calls)

    @property
    def content(self) -> str:
        """The first message's answer, as far as it is."""
        return self._told(0).content

    @property
    def reasoning(self) -> str:
        """What was thought before it, as far as it is."""
        return self._told(0).reasoning

    def parsed(self, index: int = 0) -> Any:
        """Wait for the end, and return an answer as what ``response_format`` says: of its type, or as JSON.

        Raises ValueError where the answer is not whole, as ``max_tokens`` were reached or it was cancelled.
        """
        self.result()
        answer = self.completion.answers[index]
        if answer.finish_reason is not FinishReason.STOP:
            raise ValueError(
                f"the answer is not whole: it has ended as {answer.finish_reason and answer.finish_reason.value}"
            )
        return parse_as(self._response_format, self._told(index).content)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first message has ended; None while it runs."""
        reason = self.completion.finish_reason
        return FinishReason.TOOL_CALLS if reason is FinishReason.STOP and self.tool_calls else reason

    @property
    def done(self) -> bool:
        """Whether all messages have ended."""
        return self.completion.done

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self.completion.usage

    @property
    def timings(self) -> Timings:
        """How long what has taken, for the first message."""
        return self.completion.timings

    def cancel(self) -> None:
        """Stop what is still running, at once. From any thread."""
        self.completion.cancel()

    close = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def result(self, timeout: float | None = None) -> Self:
        """Wait for the end, and return this; raises as ``Completion.result`` does."""
        self.completion.result(timeout)
        return self

    async def _result_async(self) -> Self:
        await self.completion
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._result_async().__await__()

    def __iter__(self) -> Iterator[Delta]:
        deltas = self._deltas()
        for piece in self.completion:
            if (delta := deltas(piece)) is not None:
                yield delta

    async def __aiter__(self) -> AsyncIterator[Delta]:
        deltas = self._deltas()
        async for piece in self.completion:
            if (delta := deltas(piece)) is not None:
                yield delta

    def _deltas(self) -> Callable[[Piece], Delta | None]:
        """Return what tells what a piece adds to its message; None is nothing yet."""
        readers = [self._reader(index) for index in range(len(self.completion.answers))]
        called = [False] * len(readers)
        held: list[tuple[list[int], list[TokenLogprobs]]] = [([], []) for _ in readers]  # since the last delta

        def delta(piece: Piece) -> Delta | None:
            reader = readers[piece.index]
            told = reader.push(piece.text)
            reason = piece.finish_reason
            if reason is not None:
                told = told.followed_by(reader.finish())
            thought, content, calls = told
            called[piece.index] = called[piece.index] or bool(calls)
            tokens, logprobs = held[piece.index]
            tokens += piece.tokens
            logprobs += piece.logprobs
            if reason is FinishReason.STOP and called[piece.index]:
                reason = FinishReason.TOOL_CALLS
            if reason is None and not thought and not content and not calls:
                return None
            held[piece.index] = ([], [])
            return Delta(content, thought, calls, piece.index, reason, tokens, logprobs)

        return delta


class Chat:
    """A conversation that goes on: it keeps what was said, so that each turn computes only what is new.

    Args:
        engine: who answers.
        system: what the model is to be, if anything is said of it.
        options: what ``Engine.chat`` takes, for every turn.

    Attributes:
        messages: what was said, answers included as soon as they have ended. Change it as you like between turns.
    """

    def __init__(self, engine: Engine, system: str | None = None, **options: Any) -> None:
        self._engine = engine
        self._options = options
        self._messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._reply: ChatCompletion | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said; an answer that is under way is waited for."""
        reply, self._reply = self._reply, None
        if reply is not None:
            try:
                reply.result()
            finally:
                self._messages.append(_whole(reply.message()))
        return self._messages

    def say(self, content: str, **options: Any) -> ChatCompletion:
        """Say something, and return the answer to come; what it has failed with or was cancelled at stays in the history.

        ``options`` are for this turn, as ``Engine.chat`` takes them. Raises as that does, and then nothing was said.
        """
        return self._say({"role": "user", "content": content}, options)

    def result(self, call: ToolCall | str, content: object) -> None:
        """Tell what a call of the last answer has given: a text, or what is JSON. ``reply`` goes on.

        Args:
            call: the call, or its id.
            content: what its function has returned.
        """
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        id_ = call if isinstance(call, str) else call.id
        self.messages.append({"role": "tool", "tool_call_id": id_, "content": text})

    def reply(self, **options: Any) -> ChatCompletion:
        """Return the answer to what was said last, such as the results of calls, as ``say`` does."""
        return self._say(None, options)

    def run(self, content: str, *, max_turns: int = 8, **options: Any) -> ChatCompletion:
        """Say something, call the functions that the model asks for, tell it their results, and return its last answer.

        Of a function that raises the model is told the error. The ``tools`` must be functions, or Tools that have one.

        Args:
            content: what to say.
            max_turns: most answers; the last one may call nothing any more.
            options: for all of these turns, as ``Engine.chat`` takes them.
        """
        tools = read_tools({**self._options, **options}.get("tools") or [])
        reply = self.say(content, **options).result()
        for turn in range(2, max_turns + 1):
            calls = reply.tool_calls
            if reply.finish_reason is not FinishReason.TOOL_CALLS:
                break
            for call in calls:
                self.result(call, _called(call, tools))
            more = {"tool_choice": "none"} if turn == max_turns else {"tool_choice": "auto"}
            reply = self.reply(**{**options, **more}).result()
        return reply

    def _say(self, message: dict[str, Any] | None, options: dict[str, Any]) -> ChatCompletion:
        messages = self.messages
        said = [] if message is None else [message]
        reply = self._engine.chat([*messages, *said], **{**self._options, **options})
        messages += said
        self._reply = reply
        return reply

    def undo(self) -> None:
        """Take back the last turn, the answer and what it was an answer to; without one do nothing."""
        messages = self.messages
        while messages and messages[-1]["role"] != "system" and messages.pop()["role"] != "user":
            pass


def _whole(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the call in which it was cut off, if it was: no template could write that."""

    def is_whole(call: dict[str, Any]) -> bool:
        try:
            return isinstance(json.loads(call["function"]["arguments"]), dict)
        except ValueError:
            return False

    calls = [call for call in message.get("tool_calls", ()) if is_whole(call)]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "tool_calls": calls} if calls else rest


def _called(call: ToolCall, tools: Sequence[Tool]) -> Any:
    """Return what a call gives, as JSON or a text; an error is told, as the model may know what to do about it."""
    try:
        found = call.run(tools)
        json.dumps(found)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return found

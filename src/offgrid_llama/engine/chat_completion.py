"""ChatCompletion: the answer to a conversation, read from an Engine's Completion."""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from offgrid_llama.chat.message_reader import MessageReader
from offgrid_llama.chat.response_format import parse_as
from offgrid_llama.chat.tools.deltas import CallDelta, MessageDelta, gathered
from offgrid_llama.chat.tools.tool import Tool, ToolCall
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.native.bound import Bound
from offgrid_llama.sampling.grammar.schema_check import CheckTime

from .completion import Completion, Piece, Timings, TokenLogprobs, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

    from offgrid_llama.chat.chat_format import ChatFormat


__all__ = ["ChatCompletion", "Delta"]

T_co = TypeVar("T_co", covariant=True)

MAX_TOLD = 16
"""The calls of one message that are told to break a rule."""
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
        warnings: with the last delta of a message: those of ChatCompletion that are about its tools and its calls.
        n_computed: as that of Piece.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[CallDelta] = ()
    index: int = 0
    finish_reason: FinishReason | None = None
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    warnings: Sequence[str] = ()
    n_computed: int | None = None


class ChatCompletion(Bound, Generic[T_co]):
    """The answer to a conversation: one message, or ``n``.

    Iterate over it for deltas as they come (``for``, or ``async for``), call ``result()`` or ``await`` it for the whole;
    each may be done more than once. When the last reference to it goes, or its ``with`` block ends, what is still running is
    cancelled.

    Where the schemas of tools have rules that no grammar can hold, complete calls are checked against them. That takes up to
    a second of computing, for all calls together. On an event loop, each wait for the end has a thread do it.

    Attributes:
        completion: the Completion that it reads.
        in_thread: awaited with a function and its arguments, to call that in a thread; ``asyncio.to_thread`` by default.
        prompt: the token ids of its prompt.
    """

    _instead = "keep its message(), which is a dict"

    def __init__(
        self,
        completion: Completion,
        chat_format: ChatFormat,
        *,
        prompt: Sequence[int] = (),
        tools: Sequence[Tool] = (),
        inside: bool = False,
        split_reasoning: bool = True,
        response_format: object = None,
        bare: Literal["", "one", "many"] = "",
    ) -> None:
        self.completion = completion
        self.prompt = prompt
        self._format = chat_format
        self._tools = tools
        self._inside = inside
        self._split_reasoning = split_reasoning
        self._response_format = response_format
        self._bare = bare
        self.in_thread: Callable[..., Awaitable[Any]] = _in_thread
        self._broken: dict[int, list[str]] = {}  # by the indices of the messages whose calls are checked
        self._check_time = CheckTime()
        # Of calls: with two digits for the call and one for the message these are nine, as some templates want.
        self._id = secrets.token_hex(3)

    def __repr__(self) -> str:
        return f"<ChatCompletion {self.content!r}>"

    def _reader(self, index: int) -> MessageReader:
        """Return a new reader of the message of an index."""

        def new_id(call: int) -> str:
            return f"{self._id}{_DIGITS[index % 36]}{_DIGITS[call // 36 % 36]}{_DIGITS[call % 36]}"

        return self._format.reader(
            self._tools, new_id, inside=self._inside, split_reasoning=self._split_reasoning, bare=self._bare
        )

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

    def _told(self, index: int) -> MessageDelta:
        """Return the message as it stands, complete or not."""
        answer = self.completion.answers[index]
        reader = self._reader(index)
        told = reader.push(answer.text)
        return told if answer.finish_reason is None else told.followed_by(reader.finish(cut=self._is_cut(index)))

    def _is_cut(self, index: int) -> bool:
        """Return whether a message that has ended is cut: by a limit, or by a stop string within a call or a mark."""
        answer = self.completion.answers[index]
        if answer.stop is None or answer.finish_reason is not FinishReason.STOP:
            return answer.finish_reason is not FinishReason.STOP
        reader = self._reader(index)
        told = reader.push(answer.text + answer.stop).followed_by(reader.finish(cut=True))
        return not told.content.endswith(answer.stop) and not told.reasoning.endswith(answer.stop)

    def _reason(self, index: int, calls: Sequence[CallDelta]) -> FinishReason | None:
        """Return why a message with these calls has ended; a stop string may have cut the last of them."""
        answer = self.completion.answers[index]
        if not calls or answer.finish_reason is not FinishReason.STOP:
            return answer.finish_reason
        whole = answer.stop is None or all(call.is_whole for call in gathered(calls))
        return FinishReason.TOOL_CALLS if whole else FinishReason.STOP

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
        """The reasoning before that answer, as far as it is."""
        return self._told(0).reasoning

    def parsed(self, index: int = 0) -> T_co:
        """Wait for the end, and return an answer as what ``response_format`` says: of its type, or as JSON.

        Raises ValueError where the answer is not whole, as ``max_tokens`` were reached or it was cancelled, and where it
        calls tools instead.
        """
        self.result()
        answer = self.completion.answers[index]
        if answer.finish_reason is not FinishReason.STOP:
            raise ValueError(
                f"the answer is not whole: it has ended as {answer.finish_reason and answer.finish_reason.value}"
            )
        told = self._told(index)
        if told.calls and not told.content:
            raise ValueError("the answer has no content: it calls tools")
        return cast("T_co", parse_as(self._response_format, told.content))

    def reasoning_tokens(self, index: int = 0) -> int:
        """Return how many tokens of a message, as far as it is, are reasoning, with the mark that opens it."""
        told, tokens = self._told(index), self.completion.answers[index].tokens
        if not told.reasoning:
            return 0
        if not told.content and not told.calls:
            return len(tokens)
        pieces = [self._format.piece(token) for token in tokens]

        def is_over(n: int) -> bool:
            text = b"".join(pieces[:n]).decode("utf-8", "ignore")
            return len(self._reader(index).push(text).reasoning) >= len(told.reasoning)

        return bisect_left(range(len(tokens)), True, key=is_over)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first message has ended; None while it runs."""
        return self.finish_reason_of(0)

    def finish_reason_of(self, index: int) -> FinishReason | None:
        """Return why a message has ended; None while it runs."""
        return self._reason(index, self._told(index).calls)

    @property
    def warnings(self) -> list[str]:
        """The rules of the tools' schemas that no grammar can hold, and then the calls that break one of them.

        Each of the first is ``tool NAME: not held: /place/in/the/schema: problem``, and each of the others
        ``tool NAME: call ID is not valid: /place/in/the/arguments: keyword: how``, with JSON pointers. Calls are checked
        when all messages have ended, those of a stream with its last delta. One that is cut off is not checked.
        """
        ended = range(len(self.completion.answers)) if self.completion.done else sorted(self._broken)
        return self._not_held + [told for index in ended for told in self._broken_rules(index)]

    @property
    def _not_held(self) -> list[str]:
        return [f"tool {tool.name}: not held: {told}" for tool in self._tools for told in tool.schema.left_out]

    @property
    def _checks(self) -> bool:
        return any(tool.is_checked for tool in self._tools)

    def _broken_rules(self, index: int) -> list[str]:
        """Return the rules that the calls of a message break, once it has ended; they are checked the first time."""
        found = self._broken.get(index)
        if found is None:
            calls = gathered(self._told(index).calls) if self._checks else []
            found = self._broken[index] = list(islice(filter(None, map(self._broken_rule, calls)), MAX_TOLD))
        return found

    def _broken_rule(self, call: ToolCall) -> str:
        """Return the rule that a call breaks; empty for none, and for a call that is cut off."""
        tool = next(tool for tool in self._tools if tool.name == call.name)
        if not tool.is_checked:
            return ""
        try:
            broken = tool.broken_rule(call.parsed, self._check_time)
        except ValueError:
            return ""
        return broken and f"tool {call.name}: call {call.id} is not valid: {broken}"

    async def _check(self, index: int) -> None:
        """Check the calls of a message that has ended, in a thread."""
        if self._checks and index not in self._broken:
            await self.in_thread(self._broken_rules, index)

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
        for answer in self.completion.answers:
            await self._check(answer.index)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._result_async().__await__()

    def __iter__(self) -> Iterator[Delta]:
        deltas = self._deltas()
        for piece in self.completion:
            if (delta := deltas(piece)) is not None:
                yield self._with_warnings(delta)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        deltas = self._deltas()
        async for piece in self.completion:
            if (delta := deltas(piece)) is not None:
                if delta.finish_reason is not None:
                    await self._check(delta.index)
                yield self._with_warnings(delta)

    def _with_warnings(self, delta: Delta) -> Delta:
        if delta.finish_reason is not None:
            delta.warnings = self._not_held + self._broken_rules(delta.index)
        return delta

    def _deltas(self) -> Callable[[Piece], Delta | None]:
        """Return what tells what a piece adds to its message; None is nothing yet."""
        readers = [self._reader(index) for index in range(len(self.completion.answers))]
        called: list[list[CallDelta]] = [[] for _ in readers]
        held: list[tuple[list[int], list[TokenLogprobs]]] = [([], []) for _ in readers]  # since the last delta

        def delta(piece: Piece) -> Delta | None:
            if piece.n_computed is not None:
                return Delta(index=piece.index, n_computed=piece.n_computed)
            reader = readers[piece.index]
            told = reader.push(piece.text)
            reason = piece.finish_reason
            if reason is not None:
                told = told.followed_by(reader.finish(cut=self._is_cut(piece.index)))
            thought, content, calls = told
            called[piece.index] += calls
            tokens, logprobs = held[piece.index]
            tokens += piece.tokens
            logprobs += piece.logprobs
            if reason is not None:
                reason = self._reason(piece.index, called[piece.index])
            if reason is None and not thought and not content and not calls:
                return None
            held[piece.index] = ([], [])
            return Delta(content, thought, calls, piece.index, reason, tokens, logprobs)

        return delta


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    import asyncio

    return await asyncio.to_thread(function, *arguments)

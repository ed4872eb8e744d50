"""Chat: a conversation that goes on, with an Engine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from offgrid_llama.chat.tools.tool import Tool, ToolCall, read_tools
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import refuse_unknown
from offgrid_llama.native.kinds import instance
from offgrid_llama.text.json_text import read_json_text

from . import tool_calls
from .chat_options import TurnArguments
from .engine import Engine

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from offgrid_llama.media.audio import Audio
    from offgrid_llama.media.image import Image

    from .chat_completion import ChatCompletion
    from .chat_options import ChatArguments

__all__ = ["Chat"]

T = TypeVar("T")
Content: TypeAlias = "str | Sequence[Mapping[str, Any] | Image | Audio]"
"""The content of a user's message: a text, or parts as ``Engine.chat`` takes them."""


class Chat(Bound):
    """A conversation that goes on: it keeps the messages, so that each turn computes only the new ones.

    Args:
        engine: the Engine that answers.
        system: the system message, if any.
        options: what ``Engine.chat`` takes, for every turn.

    Attributes:
        messages: the messages so far; an answer joins them when it ends. You may change the list between turns.
    """

    _instead = "make another one, and give it the same messages"

    def __init__(self, engine: Engine, system: str | None = None, **options: Unpack[TurnArguments]) -> None:
        instance("engine", engine, Engine)
        refuse_unknown("Chat", options, ["engine", "system", *TurnArguments.__annotations__])
        self._engine = engine
        self._options = options
        self._messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._reply: ChatCompletion[Any] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages so far. An answer that still runs is not among them yet; the next turn waits for it.

        One that is cancelled ends at once, and is waited for.
        """
        if self._reply is not None and (self._reply.done or self._reply.completion.cancelled):
            self._wait()
        return self._messages

    def _wait(self) -> None:
        """Wait for the running answer, and keep its message. If it fails, it tells those that wait for itself."""
        reply = self._reply
        if reply is not None:
            reply.completion.wait()
            self._keep(reply)

    async def _wait_async(self) -> None:
        """Do what ``_wait`` does, on an event loop."""
        reply = self._reply
        if reply is not None:
            await reply.completion.wait_async()
            self._keep(reply)

    def _keep(self, reply: ChatCompletion[Any]) -> None:
        if self._reply is reply:
            self._reply = None
            self._messages.append(_without_cut_calls(reply.message()))

    @overload
    def say(
        self, content: Content, *, response_format: type[T], **options: Unpack[ChatArguments]
    ) -> ChatCompletion[T]: ...
    @overload
    def say(self, content: Content, **options: Unpack[TurnArguments]) -> ChatCompletion[Any]: ...
    def say(self, content: Content, **options: Any) -> ChatCompletion[Any]:
        """Send a user's message, and return the running answer. One that fails or is cancelled stays in ``messages``.

        ``options`` are for this turn, as ``Engine.chat`` takes them. Raises as that does; the message is not kept then.
        """
        self._wait()
        return self._turn("Chat.say", {"role": "user", "content": content}, options)

    @overload
    async def say_async(
        self, content: Content, *, response_format: type[T], **options: Unpack[ChatArguments]
    ) -> ChatCompletion[T]: ...
    @overload
    async def say_async(self, content: Content, **options: Unpack[TurnArguments]) -> ChatCompletion[Any]: ...
    async def say_async(self, content: Content, **options: Any) -> ChatCompletion[Any]:
        """Do what ``say`` does, on an event loop: ``async for`` over the running answer that this returns, or await it."""
        await self._wait_async()
        return self._turn("Chat.say_async", {"role": "user", "content": content}, options)

    @overload
    def reply(self, *, response_format: type[T], **options: Unpack[ChatArguments]) -> ChatCompletion[T]: ...
    @overload
    def reply(self, **options: Unpack[TurnArguments]) -> ChatCompletion[Any]: ...
    def reply(self, **options: Any) -> ChatCompletion[Any]:
        """Return the running answer to the messages so far, which end with the results of calls for instance, as ``say``."""
        self._wait()
        return self._turn("Chat.reply", None, options)

    @overload
    async def reply_async(self, *, response_format: type[T], **options: Unpack[ChatArguments]) -> ChatCompletion[T]: ...
    @overload
    async def reply_async(self, **options: Unpack[TurnArguments]) -> ChatCompletion[Any]: ...
    async def reply_async(self, **options: Any) -> ChatCompletion[Any]:
        """Do what ``reply`` does, on an event loop."""
        await self._wait_async()
        return self._turn("Chat.reply_async", None, options)

    def add_tool_result(self, call: ToolCall | str, content: object) -> None:
        """Add the result of a call of the last answer, a text or anything that is JSON; ``reply`` continues.

        Args:
            call: the call, or its id.
            content: what its function has returned.
        """
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        id_ = call if isinstance(call, str) else call.id
        self.messages.append({"role": "tool", "tool_call_id": id_, "content": text})

    def result(self, call: ToolCall | str, content: object) -> None:
        """Do what ``add_tool_result`` does, under its old name, with a DeprecationWarning."""
        warnings.warn("Chat.result() is now Chat.add_tool_result()", DeprecationWarning, stacklevel=2)
        self.add_tool_result(call, content)

    @overload
    def run(
        self, content: Content, *, max_turns: int = 8, response_format: type[T], **options: Unpack[ChatArguments]
    ) -> ChatCompletion[T]: ...
    @overload
    def run(self, content: Content, *, max_turns: int = 8, **options: Unpack[TurnArguments]) -> ChatCompletion[Any]: ...
    def run(self, content: Content, *, max_turns: int = 8, **options: Any) -> ChatCompletion[Any]:
        """Send a user's message, call the functions that the model asks for, and return its last answer.

        Each result goes back to the model; where a function raises, its error does. Where the arguments break a rule of the
        tool's schema, the function is not called, and the model is told the rule. The ``tools`` must be functions, or Tools
        that have one. Ctrl-C cancels the answer.

        Args:
            content: the message: a text, or parts as ``Engine.chat`` takes them.
            max_turns: the most answers; the last one cannot call a tool any more.
            options: for all of these turns, as ``Engine.chat`` takes them.

        Raises TypeError for an async function, which takes ``run_async``; and as ``say`` does.
        """
        refuse_unknown("Chat.run", options, ["max_turns", *TurnArguments.__annotations__])
        tools = self._tools(options)
        tool_calls.refuse_async(tools)
        reply = self.say(content, **options).result()
        for more in _next_turns(max_turns):
            if reply.finish_reason is not FinishReason.TOOL_CALLS:
                break
            with self._answering(reply.tool_calls) as unanswered:
                while unanswered:
                    found = tool_calls.result(unanswered[0], tools)
                    self.add_tool_result(unanswered.pop(0), found)
            reply = self.reply(**{**options, **more}).result()
        return reply

    @overload
    async def run_async(
        self, content: Content, *, max_turns: int = 8, response_format: type[T], **options: Unpack[ChatArguments]
    ) -> ChatCompletion[T]: ...
    @overload
    async def run_async(
        self, content: Content, *, max_turns: int = 8, **options: Unpack[TurnArguments]
    ) -> ChatCompletion[Any]: ...
    async def run_async(self, content: Content, *, max_turns: int = 8, **options: Any) -> ChatCompletion[Any]:
        """Do what ``run`` does, on an event loop. The calls of one answer run at the same time.

        Async functions are awaited, and others run in threads. Cancelling the task cancels the answer, and async
        functions; a function in a thread runs to its end.
        """
        refuse_unknown("Chat.run_async", options, ["max_turns", *TurnArguments.__annotations__])
        tools = self._tools(options)
        reply = await (await self.say_async(content, **options))
        for more in _next_turns(max_turns):
            if reply.finish_reason is not FinishReason.TOOL_CALLS:
                break
            with self._answering(reply.tool_calls) as unanswered:
                for found in await tool_calls.results_async(unanswered, tools):
                    self.add_tool_result(unanswered.pop(0), found)
            reply = await (await self.reply_async(**{**options, **more}))
        return reply

    @contextmanager
    def _answering(self, calls: list[ToolCall]) -> Iterator[list[ToolCall]]:
        """Give calls to be answered. Those that are left when the block is interrupted get a result that says so.

        Without one the conversation could not go on: templates want a result for each call.
        """
        try:
            yield calls
        except BaseException:
            for call in calls:
                self.add_tool_result(call, "The call was interrupted.")
            raise

    def _tools(self, options: Mapping[str, Any]) -> list[Tool]:
        return read_tools({**self._options, **options}.get("tools") or [])

    def _turn(self, caller: str, message: dict[str, Any] | None, options: dict[str, Any]) -> ChatCompletion[Any]:
        refuse_unknown(caller, options, TurnArguments.__annotations__)
        said = [] if message is None else [message]
        all_options: Any = {**self._options, **options}
        reply = self._engine.chat([*self._messages, *said], **all_options)
        self._messages += said
        self._reply = reply
        return reply

    def undo(self) -> None:
        """Remove the last turn: the answer, and the message that it answers. Without one do nothing.

        An answer that still runs is cancelled.
        """
        if self._reply is not None:
            self._reply.cancel()
        messages = self.messages
        while messages and messages[-1]["role"] != "system" and messages.pop()["role"] != "user":
            pass


def _without_cut_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without a call that is cut off, or nested too deeply: no template could write it."""

    def is_whole(call: dict[str, Any]) -> bool:
        try:
            return isinstance(read_json_text(call["function"]["arguments"]), dict)
        except ValueError:
            return False

    calls = [call for call in message.get("tool_calls", ()) if is_whole(call)]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "tool_calls": calls} if calls else rest


def _next_turns(max_turns: int) -> Iterator[dict[str, Any]]:
    """Give what changes in each turn after the first: the last one cannot call a tool any more."""
    for turn in range(2, max_turns + 1):
        yield {"tool_choice": "none" if turn == max_turns else "auto"}

"""ChatCompletion and Chat: conversations, on an Engine's completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat.messages import plain_messages
from ..chat.prompt import prompt_tokens
from ..chat.reasoning import Reasoning, Splitter, find_reasoning, lark_around
from ..chat.response_format import parse_as
from ..chat.template import ChatTemplate
from .budget import Budget
from .completion import Completion, Piece, Timings, Usage
from .request import FinishReason

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..grammar import Grammar
    from ..model import Model
    from .engine import Engine
    from .options import RequestOptions

__all__ = ["Chat", "ChatCompletion", "ChatFormat", "Delta"]


@dataclass(slots=True)
class Delta:
    """Some of a message, as it comes.

    Attributes:
        content: of the answer.
        reasoning: of what was thought before it.
        index: which of the ``n`` messages it is of.
        finish_reason: why the message ends with this delta; None before.
    """

    content: str = ""
    reasoning: str = ""
    index: int = 0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model gets it.

    Attributes:
        tokens: its token ids.
        inside: whether it has opened the reasoning.
        closed: whether it has closed it, too, so that there will be none.
    """

    tokens: list[int]
    inside: bool = False
    closed: bool = False


class ChatFormat:
    """A chat template, with what was found out about it: rendered once for all conversations.

    Args:
        template: the ChatTemplate.
        model: whose prompts it makes.
    """

    def __init__(self, template: ChatTemplate, model: Model) -> None:
        self.template = template
        self.reasoning = find_reasoning(template)
        self._vocab = model.vocab
        marks = "" if self.reasoning is None else self.reasoning.begin + self.reasoning.end
        self.shown = frozenset(token for text, token in self._vocab.control_tokens().items() if text in marks)
        """Control tokens that are to be seen in the text."""

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], continue_final_message: bool, variables: Mapping[str, Any]
    ) -> Prompt:
        """Return the prompt that a conversation makes."""
        plain = plain_messages(messages)
        if continue_final_message:
            parts = self.template.parts_to_continue(plain, **variables)
        else:
            parts = self.template.parts(plain, **variables)
        tokens = prompt_tokens(self._vocab, parts)
        if self.reasoning is None:
            return Prompt(tokens)
        tail = "".join(part.text for part in parts[-2:])
        inside = tail.rfind(self.reasoning.begin) > tail.rfind(self.reasoning.end)
        return Prompt(tokens, inside, not inside and tail.rstrip().endswith(self.reasoning.end))

    def grammar(self, answer: Grammar, prompt: Prompt) -> Grammar:
        """Return what the model's text must be for its answer to be as a grammar says."""
        if self.reasoning is None or prompt.closed or (not answer.guided and not prompt.inside):
            return answer
        return answer.within(lark_around(self.reasoning, self._vocab, inside=prompt.inside))

    def limited(self, n_tokens: int, prompt: Prompt) -> tuple[Prompt, Callable[[], Budget] | None]:
        """Return the prompt of an answer with so many tokens of reasoning, and what makes its Budget, if it takes one."""
        marks = self.reasoning
        if marks is None or prompt.closed:
            return prompt, None
        closing = self._vocab.tokenize(f"\n{marks.end}\n\n", add_special=False, parse_special=True)
        if prompt.inside and not n_tokens:
            return Prompt([*prompt.tokens, *closing], closed=True), None
        begin, end = marks.begin.encode(), marks.end.encode()
        return prompt, lambda: Budget(n_tokens, begin, end, inside=prompt.inside, closing=closing)


class ChatCompletion:
    """What a conversation is answered with: one message, or ``n``.

    Iterate over it for deltas as they come (``for``, or ``async for``), call ``result()`` or ``await`` it for the whole;
    each may be done more than once. When the last reference to it goes, or its ``with`` block ends, what is still running is
    cancelled.

    Attributes:
        completion: the Completion that it reads.
    """

    def __init__(
        self, completion: Completion, reasoning: Reasoning | None, inside: bool, response_format: object = None
    ) -> None:
        self.completion = completion
        self._reasoning = reasoning
        self._inside = inside
        self._response_format = response_format

    def __repr__(self) -> str:
        return f"<ChatCompletion {self.content!r}>"

    def _splitter(self) -> Splitter:
        return Splitter(self._reasoning, inside=self._inside)

    def message(self, index: int = 0) -> dict[str, Any]:
        """Return a message, as far as it is, as it belongs into the next conversation: role, content, reasoning_content."""
        splitter = self._splitter()
        answer = self.completion.answers[index]
        found = [splitter.push(answer.text)]
        if answer.finish_reason is not None:
            found.append(splitter.finish())
        message = {"role": "assistant", "content": "".join(content for _, content in found)}
        if reasoning := "".join(thought for thought, _ in found):
            message["reasoning_content"] = reasoning
        return message

    @property
    def content(self) -> str:
        """The first message's answer, as far as it is."""
        return str(self.message()["content"])

    @property
    def reasoning(self) -> str:
        """What was thought before it, as far as it is."""
        return str(self.message().get("reasoning_content", ""))

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
        return parse_as(self._response_format, str(self.message(index)["content"]))

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first message has ended; None while it runs."""
        return self.completion.finish_reason

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
        splitters = [self._splitter() for _ in self.completion.answers]
        for piece in self.completion:
            if (delta := _delta(piece, splitters[piece.index])) is not None:
                yield delta

    async def __aiter__(self) -> AsyncIterator[Delta]:
        splitters = [self._splitter() for _ in self.completion.answers]
        async for piece in self.completion:
            if (delta := _delta(piece, splitters[piece.index])) is not None:
                yield delta


def _delta(piece: Piece, splitter: Splitter) -> Delta | None:
    """Return what a piece adds to a message; None is nothing yet."""
    thought, content = splitter.push(piece.text)
    if piece.finish_reason is not None:
        last_thought, last_content = splitter.finish()
        thought, content = thought + last_thought, content + last_content
    elif not thought and not content:
        return None
    return Delta(content, thought, piece.index, piece.finish_reason)


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
                self._messages.append(reply.message())
        return self._messages

    def say(self, content: str, **options: Unpack[RequestOptions]) -> ChatCompletion:
        """Say something, and return the answer to come; what it has failed with or was cancelled at stays in the history.

        ``options`` are for this turn. Raises as ``Engine.chat`` does, and then nothing was said.
        """
        messages = self.messages
        reply = self._engine.chat([*messages, {"role": "user", "content": content}], **{**self._options, **options})
        messages.append({"role": "user", "content": content})
        self._reply = reply
        return reply

    def undo(self) -> None:
        """Take back the last turn, the answer and what it was an answer to; without one do nothing."""
        messages = self.messages
        while messages and messages[-1]["role"] != "system" and messages.pop()["role"] != "user":
            pass

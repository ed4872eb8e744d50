"""ChatOptions: what a caller can say about one answer of a chat, besides RequestOptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

from offgrid_llama.chat.chat_format import ChatFormat, Prompt, ToolUse
from offgrid_llama.chat.template.template import ChatTemplate
from offgrid_llama.chat.tools.tool import Tool
from offgrid_llama.native.check import number, refuse_unknown
from offgrid_llama.native.kinds import listed, mapping, switch
from offgrid_llama.tasks.request_options import RequestArguments

from .planning.reasoning_budget import ReasoningBudget

__all__ = ["ChatArguments", "ChatOptions", "TurnArguments"]


class ChatArguments(RequestArguments, total=False):
    """The options of ``Engine.chat``, as keyword arguments: these and those of RequestOptions; see ChatOptions."""

    template: ChatTemplate | str | None
    variables: Mapping[str, Any] | None
    continue_final_message: bool
    tools: Sequence[Tool | Callable[..., Any] | Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool
    bare_calls: bool
    split_reasoning: bool
    reasoning_budget: int | None
    before: Sequence[int]


class TurnArguments(ChatArguments, total=False):
    """The options of one turn of a Chat: those of ``Engine.chat``, ``response_format`` included."""

    response_format: object


@dataclass(frozen=True)
class ChatOptions:
    """The options of one answer of a chat.

    Attributes:
        template: a ChatTemplate, the name of one of the model's templates, "chatml", or Jinja text. None is the model's
            "tool_use" for a conversation with tools, where it has one, and else its default.
        variables: further variables for the template, such as ``{"enable_thinking": False}``.
        continue_final_message: continue the last message, the assistant's, where it ends.
        tools: functions that the model may call: Python functions with typed parameters, Tools, or OpenAI's dicts.
        tool_choice: "auto" (None) leaves it to the model, "required" makes it call one, a tool's name makes it call that
            one, "none" forbids calls.
        parallel_tool_calls: whether one answer may have several calls.
        bare_calls: read a call that the model writes without the marks of its format, too: an answer that is JSON with the
            name of a tool and arguments that fit, as a whole or in a block of Markdown. Where a call is required, or the
            answer has a ``response_format``, there are none.
        split_reasoning: separate the reasoning from the answer, where the template marks it.
        reasoning_budget: the most tokens of reasoning, after which the model must answer; 0 is none, None is no limit.
        before: token ids that come before the prompt, such as those of a text that the conversation goes on from.
        use: the resulting ToolUse (not an argument).

    Raises ValueError or TypeError for an argument that is not as described, GrammarError for a tool's schema.
    """

    template: ChatTemplate | str | None = None
    variables: Mapping[str, Any] | None = None
    continue_final_message: bool = False
    tools: Sequence[Tool | Callable[..., Any] | Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    bare_calls: bool = True
    split_reasoning: bool = True
    reasoning_budget: int | None = None
    before: Sequence[int] = ()
    use: ToolUse = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reasoning_budget is not None:
            number("reasoning_budget", self.reasoning_budget, 0)
        if self.variables is not None:
            mapping("variables", self.variables)
        listed("before", self.before, "token ids")
        for name in ("continue_final_message", "parallel_tool_calls", "bare_calls", "split_reasoning"):
            switch(name, getattr(self, name))
        object.__setattr__(self, "use", ToolUse.of(self.tools, self.tool_choice, self.parallel_tool_calls))

    def bare(self, answer: object) -> Literal["", "one", "many"]:
        """Return how many calls without marks an answer may have, for its ``response_format``."""
        if not self.bare_calls or self.use.required or answer is not None:
            return ""
        return "many" if self.use.parallel else "one"

    @classmethod
    def split(cls, caller: str, arguments: ChatArguments) -> tuple[ChatOptions, RequestArguments]:
        """Return the options of the chat among keyword arguments, and the rest, which are those of its request.

        Raises TypeError for one that ``caller``, a function, does not take; and as the class does.
        """
        refuse_unknown(caller, arguments, TurnArguments.__annotations__)
        own: dict[str, Any] = {name: value for name, value in arguments.items() if name in _NAMES}
        rest: Any = {name: value for name, value in arguments.items() if name not in _NAMES}
        return cls(**own), rest

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], chat_format: ChatFormat, salt: str
    ) -> tuple[Prompt, Callable[[], ReasoningBudget] | None]:
        """Return the prompt of a conversation, and what makes the reasoning budget of an answer to it."""
        prompt = chat_format.prompt(
            messages, self.continue_final_message, self.variables or {}, self.use.tools, salt=salt, before=self.before
        )
        if self.reasoning_budget is None:
            return prompt, None
        prompt, limit = chat_format.limited(self.reasoning_budget, prompt)
        if limit is None:
            return prompt, None
        return prompt, partial(
            ReasoningBudget, limit.n_tokens, limit.begin, limit.end, inside=limit.inside, closing=limit.closing
        )


_NAMES = {each.name for each in fields(ChatOptions) if each.init}

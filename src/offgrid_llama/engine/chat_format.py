"""ChatFormat: a chat template, with what was found out about it: how a model is asked, how it thinks, how it calls tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..chat.messages import plain_messages
from ..chat.prompt import TextTokens, prompt_tokens
from ..chat.reasoning import find_reasoning, lark_around, opened
from ..chat.template import ChatTemplate, Part
from ..chat.tool import Tool, choose_tools, read_tools
from ..chat.tool_grammar import tool_grammar
from ..chat.tool_messages import tool_messages, tools_described
from ..chat.tool_probe import find_tool_format
from ..errors import ChatTemplateError
from .budget import Budget

if TYPE_CHECKING:
    from ..grammar import Grammar
    from ..model import Model

__all__ = ["ChatFormat", "Prompt", "ToolUse"]


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


@dataclass(frozen=True)
class ToolUse:
    """Which tools may be called in an answer.

    Attributes:
        tools: all that the model is told of.
        allowed: those that it may call now.
        required: whether it must call one.
        parallel: whether it may call several.
    """

    tools: Sequence[Tool] = ()
    allowed: Sequence[Tool] = ()
    required: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, tools: object, choice: object, parallel: bool) -> ToolUse:
        """Return what is meant by the arguments of ``Engine.chat``; raises as ``read_tools`` and ``choose_tools`` do."""
        read = [] if tools is None else read_tools(tools)
        allowed, required = choose_tools(read, choice)
        return cls(read if allowed else [], allowed, required, bool(parallel))


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
        self._tokens = TextTokens(self._vocab)
        self.tools = find_tool_format(template, self.reasoning, self._vocab.control_tokens())
        marks = "".join(self.tools.texts)
        if self.reasoning is not None:
            marks += self.reasoning.begin + self.reasoning.end
        self.shown = frozenset(token for text, token in self._vocab.control_tokens().items() if text in marks)
        """Control tokens that are to be seen in the text."""

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        continue_final_message: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Tool] = (),
        *,
        salt: str = "",
    ) -> Prompt:
        """Return the prompt that a conversation makes; its texts' tokens are kept for those with the same salt."""
        plain = tool_messages(plain_messages(messages), self.tools)
        if tools and self.tools.told:
            variables = {**variables, "tools": [tool.as_dict() for tool in tools]}
        elif tools:
            plain = self._with_system(plain, tools_described(tools, self.tools))
        parts = self._parts(plain, continue_final_message, variables)
        return Prompt(
            prompt_tokens(self._vocab, parts, partial(self._tokens, salt=salt)), *opened(parts, self.reasoning)
        )

    def _parts(
        self, messages: Sequence[Mapping[str, Any]], continue_final_message: bool, variables: Mapping[str, Any]
    ) -> list[Part]:
        if continue_final_message:
            return self.template.parts_to_continue(messages, **variables)
        return self.template.parts(messages, **variables)

    def _with_system(self, messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """Return messages that tell something first, in the system's name, or the user's where a system has no say."""
        role = "system" if self._takes_system else "user"
        if messages[0].get("role") != role:
            return [{"role": role, "content": text}, *messages]
        return [{**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{text}".lstrip()}, *messages[1:]]

    @cached_property
    def _takes_system(self) -> bool:
        try:
            asked = [{"role": "system", "content": "Zorblax."}, {"role": "user", "content": "Hello."}]
            return "Zorblax." in self.template.render(asked)
        except ChatTemplateError:
            return False

    def grammar(self, answer: Grammar | None, prompt: Prompt, use: ToolUse) -> Grammar | None:
        """Return what the model's text must be for its answer to be as a grammar says, and its calls whole."""
        marks, form = self.reasoning, self.tools
        if use.allowed or (answer is not None and form.heads is not None):
            opens = marks is not None and not (prompt.inside or prompt.closed)
            never = (
                marks.begin if marks is not None and opens and marks.begin not in self._vocab.control_tokens() else ""
            )
            answer = tool_grammar(
                form, use.allowed, self._vocab, required=use.required, parallel=use.parallel, answer=answer, never=never
            )
        if answer is None or marks is None or prompt.closed or form.heads or (not answer.guided and not prompt.inside):
            return answer
        return answer.within(lark_around(marks, self._vocab, inside=prompt.inside))

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

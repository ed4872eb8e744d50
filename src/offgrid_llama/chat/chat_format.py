"""ChatFormat: a chat template, with the model's ways to reason and to call tools, found from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from offgrid_llama.errors import ChatTemplateError, GrammarError
from offgrid_llama.native.bound import Bound

from .fitting import Fitting
from .media_parts import media_between, take_media
from .message_reader import MessageReader
from .messages import plain_messages
from .prompt import TextTokens, prompt_tokens
from .reasoning import find_reasoning, lark_around, opened
from .template.template import ChatTemplate, PromptPart
from .tools.call_fitting import CallFitting
from .tools.call_grammar import tool_grammar
from .tools.call_messages import read_calls, tool_messages, tools_described
from .tools.call_probe import find_tool_format
from .tools.call_reader import ToolReader
from .tools.tool import Tool, choose_tools, read_tools

if TYPE_CHECKING:
    from offgrid_llama.media.audio import Audio
    from offgrid_llama.media.image import Image
    from offgrid_llama.model.model import Model
    from offgrid_llama.sampling.grammar.grammar import Grammar

__all__ = ["ChatFormat", "Prompt", "ReasoningLimit", "ToolUse"]


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model gets it.

    Attributes:
        tokens: its token ids, with the pictures and sounds between them.
        inside: whether it ends inside of the reasoning, which it has opened.
        closed: whether it has closed the reasoning, too, so that the model writes none.
    """

    tokens: list[int | Image | Audio]
    inside: bool = False
    closed: bool = False

    @property
    def token_ids(self) -> list[int]:
        """The token ids alone."""
        return [token for token in self.tokens if isinstance(token, int)]


@dataclass(frozen=True)
class ReasoningLimit:
    """How long a model may reason, and how its reasoning is ended.

    Attributes:
        n_tokens: the maximum number of tokens of reasoning.
        begin, end: the marks around the reasoning, in UTF-8.
        inside: whether the prompt has opened the reasoning.
        closing: the token ids that end the reasoning.
    """

    n_tokens: int
    begin: bytes
    end: bytes
    inside: bool
    closing: list[int]


@dataclass(frozen=True)
class ToolUse:
    """The tools that an answer may call.

    Attributes:
        tools: all tools that the prompt tells the model of.
        allowed: the tools that it may call.
        required: whether it must call one.
        parallel: whether it may call several.
    """

    tools: Sequence[Tool] = ()
    allowed: Sequence[Tool] = ()
    required: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, tools: object, choice: object, parallel: bool) -> ToolUse:
        """Return the meaning of the arguments of ``Engine.chat``; raises as ``read_tools`` and ``choose_tools`` do."""
        read = [] if tools is None else read_tools(tools)
        allowed, required = choose_tools(read, choice)
        return cls(read if allowed else [], allowed, required, bool(parallel))


class ChatFormat(Bound):
    """A chat template, with its marks around reasoning and its format of calls, which are found once for all conversations.

    Args:
        template: the ChatTemplate.
        model: the model that the prompts are for.

    Attributes:
        template: the ChatTemplate.
        reasoning: the marks around reasoning; None where the template has none.
        tools: how the model writes calls.
        fitting: how conversations are fitted to the template.
        shown: the control tokens that stay visible in the model's text, because they are marks.
        text_tokens: the tokens of earlier prompts' texts.
    """

    _instead = "hand on the ChatTemplate"

    def __init__(self, template: ChatTemplate, model: Model) -> None:
        self.template = template
        self.reasoning = find_reasoning(template)
        self._vocab = model.vocab
        self.text_tokens = TextTokens(self._vocab)
        self.tools = find_tool_format(template, self.reasoning, self._vocab.control_tokens())
        marks = "".join(self.tools.texts)
        if self.reasoning is not None:
            marks += self.reasoning.begin + self.reasoning.end
        self.fitting = Fitting(template)
        self._call_fitting = CallFitting(template, self.tools)
        self.shown = frozenset(token for text, token in self._vocab.control_tokens().items() if text in marks)

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token has in a model's text."""
        return self._vocab.piece(token, special=token in self.shown)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        continue_final_message: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Tool] = (),
        *,
        salt: str = "",
        before: Sequence[int] = (),
    ) -> Prompt:
        """Return the prompt of a conversation.

        Args:
            messages: the conversation, as OpenAI's clients send it.
            continue_final_message: whether the model goes on with the last message, which is the assistant's.
            variables: more variables of the template.
            tools: the tools to tell the model of.
            salt: the tokens of the conversation's texts are kept for conversations with the same salt.
            before: token ids that come before the prompt. A BOS that the model wants added is left out then.

        Raises as ``read_calls``, ``plain_messages``, ``ChatTemplate.parts`` and ``prompt_tokens`` do, and ValueError for
        a token id that the vocabulary lacks.
        """
        messages, media = take_media(messages)
        parts = self.parts(messages, variables, tools, continue_final_message=continue_final_message)
        known = partial(self.text_tokens, salt=salt)
        tokens: list[int | Image | Audio] = []
        for part in media_between(parts, media) if media else [parts]:
            tokens += prompt_tokens(self._vocab, part, known, begins=not tokens) if isinstance(part, list) else [part]
        if before:
            earlier = [self._vocab.check_token(f"before[{i}]", token) for i, token in enumerate(before)]
            has_bos = self._vocab.add_bos and tokens[:1] == [self._vocab.bos]
            tokens = [*earlier, *tokens[has_bos:]]
        return Prompt(tokens, *opened(parts, self.reasoning))

    def parts(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Tool] = (),
        *,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[PromptPart]:
        """Return the prompt as text, in the parts that ``ChatTemplate.parts`` returns.

        The arguments and errors are those of ``prompt``. Without ``add_generation_prompt`` the prompt does not begin an
        answer.
        """
        for name in ("messages", "add_generation_prompt"):
            if name in variables:
                raise TypeError(f"variables: {name} is no variable that can be passed")
        plain = _read(messages)
        if continue_final_message and plain[-1].get("tool_calls"):
            raise ValueError("messages: the last one has calls, and only a text can be continued")
        n_messages = len(plain)
        if tools and self.tools.lists_tools:
            variables = {**variables, "tools": [tool.as_dict() for tool in tools]}
        elif tools:
            plain = _with_system(plain, tools_described(tools, self.tools))
        elif self.fitting.needs_tools:
            variables = {"tools": [], **variables}
        fitted = self.fitting.fit_roles(plain, first=n_messages - len(plain))
        fitted = self.fitting.fit_rows(tool_messages(self._call_fitting.fit(fitted), self.tools))
        render: Callable[..., list[PromptPart]] = self.template.parts_to_continue
        if not continue_final_message:
            render = partial(self.template.parts, add_generation_prompt=add_generation_prompt)
        return self._rendered(partial(render, fitted), variables, tools)

    def _rendered(
        self, render: Callable[..., list[PromptPart]], variables: Mapping[str, Any], tools: Sequence[Tool]
    ) -> list[PromptPart]:
        """Return the prompt; with plain schemas of the tools where the template fails on theirs."""
        try:
            return render(**variables)
        except ChatTemplateError:
            described = self._plainly(tools)
            with suppress(ChatTemplateError):
                if described:
                    return render(**{**variables, "tools": described})
            raise

    def _plainly(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """Return tools with schemas that any template can read; none where one is too large, or the template lists none."""
        with suppress(GrammarError):
            return [tool.as_plain_dict() for tool in tools if self.tools.lists_tools]
        return []

    def grammar(self, answer: Grammar | None, prompt: Prompt, use: ToolUse) -> Grammar | None:
        """Return the grammar of the model's whole text, with its reasoning and its calls.

        Args:
            answer: the grammar of the answer; None is any text.
            prompt: the prompt of the conversation.
            use: the tools that the answer may call.
        """
        form = self.tools
        if use.allowed or (answer is not None and form.headers is not None):
            never = self._text_that_opens_reasoning(prompt)
            answer = tool_grammar(
                form, use.allowed, self._vocab, required=use.required, parallel=use.parallel, answer=answer, never=never
            )
        if answer is None or self.reasoning is None or prompt.closed or form.headers is not None:
            return answer
        return answer.within(lark_around(self.reasoning, self._vocab, inside=prompt.inside))

    def _text_that_opens_reasoning(self, prompt: Prompt) -> str:
        """Return the text that opens reasoning in an answer; empty where none does, or a control token does."""
        marks = self.reasoning
        if marks is None or prompt.inside or prompt.closed or marks.begin in self._vocab.control_tokens():
            return ""
        return marks.begin

    def reader(
        self,
        tools: Sequence[Tool],
        new_id: Callable[[int], str],
        *,
        inside: bool = False,
        split_reasoning: bool = True,
        bare: Literal["", "one", "many"] = "",
    ) -> MessageReader:
        """Return a reader of the model's answer.

        Args:
            tools: the tools that it may call.
            new_id: returns the id of the call of an index, for formats without ids.
            inside: whether the prompt has opened the reasoning.
            split_reasoning: whether reasoning is told apart from content.
            bare: read calls without the marks of the format, too, where they are the whole answer: one, or several.
        """
        calls = ToolReader(self.tools, tools, new_id, bare=bare) if tools or self.tools.headers is not None else None
        return MessageReader(self.reasoning if split_reasoning else None, inside=inside, tools=calls)

    def limited(self, n_tokens: int, prompt: Prompt) -> tuple[Prompt, ReasoningLimit | None]:
        """Return the prompt of an answer with up to ``n_tokens`` of reasoning, and the limit to enforce, if any."""
        marks = self.reasoning
        if marks is None or prompt.closed:
            return prompt, None
        closing = self._vocab.tokenize(f"\n{marks.end}\n\n", add_special=False, parse_special=True)
        if prompt.inside and not n_tokens:
            return Prompt([*prompt.tokens, *closing], closed=True), None
        return prompt, ReasoningLimit(n_tokens, marks.begin.encode(), marks.end.encode(), prompt.inside, closing)


def _read(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    try:
        return read_calls(plain_messages(messages))
    except RecursionError:
        raise ValueError("messages: the arguments of a call are nested too deeply") from None


def _with_system(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return messages with a text at the end of the system message, which is the first one."""
    if messages[0].get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    return [{**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{text}".lstrip()}, *messages[1:]]

"""The grammar of messages that may or must call tools: text is free, and a call that has begun can only become a whole one.

It is written in llguidance's Lark, with the arguments of each tool as a JSON Schema of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offgrid_llama.sampling.grammar.grammar import Grammar
from offgrid_llama.sampling.grammar.patterns import slashed

from .argument_grammar import ArgumentGrammar
from .call_format import PartHeaders, Slot, ToolFormat
from .lark_rules import LarkRules

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

    from .tool import Tool

__all__ = ["tool_grammar"]


def tool_grammar(
    form: ToolFormat,
    tools: Sequence[Tool],
    vocab: Vocab,
    *,
    required: bool,
    parallel: bool,
    answer: Grammar | None = None,
    never: str = "",
) -> Grammar:
    """Return the Grammar of a message: text that calls may follow, or calls alone.

    Args:
        form: how calls are written.
        tools: the tools that may be called; there may be none where messages have parts with headers.
        vocab: the model's; texts of the format may be control tokens of it.
        required: whether the message must have a call.
        parallel: whether it may have several.
        answer: the grammar of a message without a call; None is any text.
        never: a text that the message does not begin with, because reasoning does.
    """
    writer = _Writer(form, vocab)
    calls = writer.calls(tools, parallel=parallel) if tools else ""
    if form.headers is not None:
        start = writer.parts(form.headers, calls, "" if required else "TEXT?" if answer is None else "@answer")
    elif required:
        start = calls
    else:
        start = f"@answer | {calls}" if answer is not None else writer.free(calls, never)
    lark = "\n".join([f"start: {start}", *writer.rules])
    if answer is not None and not required:
        return answer.within(lark, writer.schemas)
    sources: list[dict[str, Any]] = [{"lark_grammar": lark}, *writer.schemas]
    return Grammar(lark, kind="lark", source=json.dumps({"grammars": sources}))


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, form: ToolFormat, vocab: Vocab) -> None:
        self.form = form
        self._controls = vocab.control_tokens()
        self._ends = vocab.eog_tokens()
        self._marks = [mark for mark in self._controls if any(mark in text for text in form.texts)]
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        if not form.spaced:
            options |= {"item_separator": ",", "key_separator": ":"}
        self._lark = LarkRules(self._controls, self._marks, options)
        self._rule = self._lark.rule
        self._text = self._lark.text

    @property
    def rules(self) -> list[str]:
        """The rules that are written so far."""
        return self._lark.rules

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The JSON Schemas that rules refer to."""
        return self._lark.schemas

    # The message ----------------------------------------------------------------------------------------------------

    def calls(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Write the rules of calls; return the expression of all of them together."""
        form = self.form
        names = [f"call{i}" for i in range(len(tools))]
        for i, tool in enumerate(tools):
            self._rule(f"call{i}", self._call(i, tool, parallel=parallel))
        self._rule("call", " | ".join(names))
        if {Slot.INDEX, Slot.PATH} & set(form.call):
            self.rules.append("INDEX: /[0-9]{1,3}/" if parallel else f"INDEX: /{form.first_index}/")
        if Slot.ID in form.call:
            self.rules.append("ID: /[a-zA-Z0-9]{9}/")
        many = "call"
        if parallel and form.separator is not None:
            many = f"call ({self._text(form.separator)} call)*".replace("( ", "(")
        return f"{self._text(form.begin.lstrip())} {many} {self._text(self._before_end_of_turn(form.end))}".strip()

    def parts(self, headers: PartHeaders, calls: str, content: str) -> str:
        """Return the expression of a message of parts: reasoning, then calls, or content where that is allowed."""
        self.rules.append("TEXT: /(?s:.+)/")
        ways = [f"{self._text(headers.content)} {content}"] if content else []
        ways += [calls] if calls else []
        if not headers.reasoning:
            return " | ".join(ways)
        self._rule("thought", f"{self._text(headers.reasoning)} {self._lark.until('thought', headers.between)}")
        return f"thought* ({' | '.join(ways)})"

    def free(self, calls: str, never: str) -> str:
        """Return the expression of a text in which calls may begin, wherever they are known in this format."""
        form = self.form
        but = f" & ~/(?s:\\s*{_escaped(never)}.*)/" if never else ""
        self.rules.append(f"TEXT: /(?s:.+)/{but}")
        if not form.anywhere:
            self.rules.append(f"OTHER: /\\s*[^{re.escape(form.trigger[0])}\\s](?s:.*)/")
            return f"OTHER | {calls}"
        token = self._controls.get(form.trigger)
        others = sorted(set(self._controls.values()) - self._ends - {token})
        text = f"(TEXT | <[{_ranges(others)}]>)*" if others else "TEXT?"
        if token is not None:
            return f"{text} ({calls})?"
        behind = self._behind(form.trigger, calls)
        self._rule("trigger[lazy]", "TRIGGER")
        self.rules.append(f"TRIGGER: /(?s:.*){_escaped(form.trigger)}/{but}")
        return f"{text} (trigger {behind})?"

    def _behind(self, trigger: str, calls: str) -> str:
        """Return the expression of calls without the trigger that they begin with."""
        if calls.startswith('"'):
            text, end = json.JSONDecoder().raw_decode(calls)
            return f"{self._text(text.lstrip().removeprefix(trigger))}{calls[end:]}"
        # Each call begins with the trigger: the first one is written without it.
        names = [rule for rule in self.rules if re.match(r"call\d+: ", rule)]
        for rule in names:
            name, _, body = rule.partition(": ")
            text, end = json.JSONDecoder().raw_decode(body)
            self._rule(f"first_{name}", f"{self._text(text.lstrip().removeprefix(trigger))}{body[end:]}")
        self._rule("first_call", " | ".join(f"first_call{i}" for i in range(len(names))))
        return re.sub(r"^call", "first_call", calls)

    # One call -------------------------------------------------------------------------------------------------------

    def _call(self, i: int, tool: Tool, *, parallel: bool) -> str:
        """Return the expression of a call of a tool."""
        parts, held = [], ""
        for piece in self.form.call:
            if isinstance(piece, str):
                held += piece
                continue
            if piece is Slot.NAME:
                held += tool.name
                continue
            if piece is Slot.PATH:
                held += f"functions.{tool.name}:"
            parts += [self._text(held), self._slot(piece, i, tool)]
            held = ""
        parts.append(self._text(self._before_end_of_turn(held) if not self.form.end and not parallel else held))
        return " ".join(part for part in parts if part)

    def _slot(self, slot: Slot, i: int, tool: Tool) -> str:
        """Return the expression of the value of a slot."""
        if slot is not Slot.ARGUMENTS:
            return "ID" if slot is Slot.ID else "INDEX"
        document = tool.schema.document
        if self.form.tags is None:
            return self._lark.json(f"args{i}", document)
        return ArgumentGrammar(self._lark, self.form.tags, document, f"a{i}x").write()

    # Texts ----------------------------------------------------------------------------------------------------------

    def _before_end_of_turn(self, text: str) -> str:
        """Return the part of a text that the model writes itself: up to the token that ends its turn."""
        ends = [text.find(mark) for mark in self._marks if self._controls[mark] in self._ends and mark in text]
        return text[: min(ends, default=len(text))]


def _ranges(ids: Sequence[int]) -> str:
    """Return ids, which are in order, as llguidance writes them: ``1-3,7``."""
    ranges: list[list[int]] = []
    for id_ in ids:
        if ranges and id_ == ranges[-1][1] + 1:
            ranges[-1][1] = id_
        else:
            ranges.append([id_, id_])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _escaped(text: str) -> str:
    return slashed(re.escape(text))

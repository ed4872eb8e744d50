"""The grammar of messages that may call tools, or must: what is free is free, and a call that has begun can only be whole.

Written in llguidance's Lark, with the arguments of each tool as a JSON Schema of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offgrid_llama.chat.literal import KIND_OF, json_types, listed_values
from offgrid_llama.chat.tool_format import ARGUMENT, ArgumentTags, Heads, Slot, Style, ToolFormat, Value
from offgrid_llama.grammar import Grammar
from offgrid_llama.json_schema import read_schema

if TYPE_CHECKING:
    from offgrid_llama.chat.tool import Tool
    from offgrid_llama.vocab import Vocab

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
    """Return the Grammar of a message: text that may go over into calls, or nothing but calls.

    Args:
        form: how calls are written.
        tools: what may be called; there may be none where messages are made of parts with heads.
        vocab: whose control tokens the texts of the format may be.
        required: whether there must be a call.
        parallel: whether there may be several.
        answer: what the message is where it has no call; None is any text.
        never: what the text does not begin with, as something else does.

    Raises GrammarError for an ``answer`` in GBNF.
    """
    writer = _Writer(form, vocab)
    calls = writer.calls(tools, parallel=parallel) if tools else ""
    if form.heads is not None:
        start = writer.parts(form.heads, calls, "" if required else "TEXT?" if answer is None else "@answer")
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
        self.rules: list[str] = []
        self.schemas: list[dict[str, Any]] = []
        self._controls = vocab.control_tokens()
        self._ends = vocab.eog_tokens()
        self._marks = [mark for mark in self._controls if any(mark in text for text in form.texts)]
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        if not form.spaced:
            options |= {"item_separator": ",", "key_separator": ":"}
        self._options = options

    # The message ----------------------------------------------------------------------------------------------------

    def calls(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Write the rules of calls; return what is all of them."""
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
        return f"{self._text(form.begin.lstrip())} {many} {self._text(self._own(form.end))}".strip()

    def parts(self, heads: Heads, calls: str, content: str) -> str:
        """Return what is made of parts: thoughts, and then content, if that may be, or calls."""
        self.rules.append("TEXT: /(?s:.+)/")
        ways = [f"{self._text(heads.content)} {content}"] if content else []
        ways += [calls] if calls else []
        if not heads.thought:
            return " | ".join(ways)
        self._rule("thought", f"{self._text(heads.thought)} {self._raw('thought', heads.between, {})}")
        return f"thought* ({' | '.join(ways)})"

    def free(self, calls: str, never: str) -> str:
        """Return what is text first, in which calls may begin anywhere that they are known."""
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
        """Return calls without the trigger that they begin with."""
        if calls.startswith('"'):
            text, end = json.JSONDecoder().raw_decode(calls)
            return f"{self._text(text.lstrip().removeprefix(trigger))}{calls[end:]}"
        # Each call begins with it: the first one is written without.
        names = [rule for rule in self.rules if re.match(r"call\d+: ", rule)]
        for rule in names:
            name, _, body = rule.partition(": ")
            text, end = json.JSONDecoder().raw_decode(body)
            self._rule(f"first_{name}", f"{self._text(text.lstrip().removeprefix(trigger))}{body[end:]}")
        self._rule("first_call", " | ".join(f"first_call{i}" for i in range(len(names))))
        return re.sub(r"^call", "first_call", calls)

    # One call -------------------------------------------------------------------------------------------------------

    def _call(self, i: int, tool: Tool, *, parallel: bool) -> str:
        """Return one call of a tool."""
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
        parts.append(self._text(self._own(held) if not self.form.end and not parallel else held))
        return " ".join(part for part in parts if part)

    def _slot(self, slot: Slot, i: int, tool: Tool) -> str:
        if slot is not Slot.ARGUMENTS:
            return "ID" if slot is Slot.ID else "INDEX"
        parameters = read_schema(dict(tool.parameters))
        if self.form.tags is None:
            return self._json(f"args{i}", parameters)
        self._tagged(i, self.form.tags, parameters)
        return f"args{i}"

    def _json(self, name: str, schema: Mapping[str, Any]) -> str:
        """Return a reference to what is JSON under a schema."""
        self.schemas.append({"name": name, "json_schema": {**schema, "x-guidance": self._options}})
        return f"@{name}"

    def _tagged(self, i: int, tags: ArgumentTags, parameters: Mapping[str, Any]) -> None:
        """Write the rules of arguments that stand one by one: the required ones first, then the others."""
        properties: Mapping[str, Any] = parameters.get("properties", {})
        needed = [name for name in properties if name in parameters.get("required", ())]
        names = needed + [name for name in properties if name not in needed]
        definitions = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
        for j, name in enumerate(names):
            schema = properties[name]
            if isinstance(schema, Mapping):
                schema = {**schema, **definitions}
            ways = [
                f"{self._text(tags.begin + name + way.middle)} {value}"
                for way, value in self._values(f"{i}_{j}", tags, schema, name)
            ]
            self._rule(f"arg{i}_{j}", " | ".join(ways))
        items = [f"arg{i}_{j}" for j in range(len(names))]
        first, rest = items[: len(needed)], items[len(needed) :]
        between = self._text(tags.separator)
        also = " ".join(f"({between} {each})?".replace("( ", "(") for each in rest)
        if first or not between:
            body = f" {between} ".join(first) + " " + also
            self._rule(f"args{i}", body.strip() or '""')
            return
        ways = [" ".join([each, *(f"({between} {other})?" for other in rest[k + 1 :])]) for k, each in enumerate(rest)]
        self._rule(f"args{i}", " | ".join([*ways, '""']))

    def _values(self, name: str, tags: ArgumentTags, schema: Any, argument: str) -> Iterator[tuple[Value, str]]:
        """Yield how a value may be written, and the rule of what is behind the text before it."""
        kinds = json_types(schema) or frozenset(KIND_OF.values())
        groups: dict[Value, list[str]] = {}
        for kind in KIND_OF.values():
            if kind in kinds:
                groups.setdefault(tags.values[kind], []).append(kind)
        for n, (way, kept) in enumerate(groups.items()):
            end = way.end.replace(ARGUMENT, argument)
            if way.style is Style.RAW:
                yield way, self._raw(f"{name}_{n}", end, schema)
            elif way.style is Style.OWN:
                yield way, f"own {self._text(end)}"
                self._own_values(tags.values["string"].end)
            else:
                only = {"type": kept} if schema in (True, {}) else dict(schema)
                ways = self._json(f"value{name}_{n}", only)
                if way.style is Style.PYTHON:
                    ways = " | ".join([ways, *self._python(kept, only)])
                yield way, f"({ways}) {self._text(end)}"

    def _python(self, kinds: Sequence[str], schema: Mapping[str, Any]) -> Iterator[str]:
        """Yield what values are in Python where that is not JSON."""
        values = listed_values(schema)
        if values is not None:
            yield from (json.dumps(repr(value)) for value in values if isinstance(value, (str, bool)) or value is None)
            return
        if "string" in kinds:
            yield "/'(\\\\.|[^'\\\\\\n])*'/"
        if "boolean" in kinds:
            yield '"True" | "False"'
        if "null" in kinds:
            yield '"None"'

    def _raw(self, name: str, end: str, schema: Any) -> str:
        """Return a text as it is, and what is behind it."""
        values = listed_values(schema)
        if values is not None:
            ways = " | ".join(json.dumps(each) for each in values if isinstance(each, str))
            return f"({ways}) {self._text(end)}"
        mark = min((mark for mark in self._marks if mark in end), key=end.find, default=None)
        if mark is None:
            self.rules.append(f"raw{name}[lazy]: /(?s:.*){_escaped(end)}/")
            return f"raw{name}"
        return f"/(?s:.*)/ {self._text(end[end.find(mark) :])}"

    def _own_values(self, quote: str) -> None:
        """Write the rules of values like JSON, with quotes of their own around texts and none around keys."""
        if any(rule.startswith("own: ") for rule in self.rules):
            return
        self._rule("own", 'own_text | NUMBER | "true" | "false" | "null" | own_list | own_dict')
        self._rule("own_text", f"{self._text(quote)} /(?s:.*)/ {self._text(quote)}")
        self._rule("own_list", '"[" (own ("," own)*)? "]"')
        self._rule("own_dict", '"{" (own_pair ("," own_pair)*)? "}"')
        self._rule("own_pair", '/[A-Za-z_$][\\w$.-]*/ ":" own')
        self.rules.append("NUMBER: /-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?/")

    # Texts ----------------------------------------------------------------------------------------------------------

    def _rule(self, name: str, body: str) -> None:
        self.rules.append(f"{name}: {body}")

    def _text(self, text: str) -> str:
        """Return a text as Lark writes it, with control tokens by their ids; empty for an empty one."""
        marks = sorted((mark for mark in self._marks if mark in text), key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
        written = (
            f"<[{self._controls[each]}]>" if each in self._controls else json.dumps(each) for each in pieces if each
        )
        return " ".join(written)

    def _own(self, text: str) -> str:
        """Return what of the text behind calls the model writes itself: up to the token that ends its turn."""
        ends = [text.find(mark) for mark in self._marks if self._controls[mark] in self._ends and mark in text]
        return text[: min(ends, default=len(text))]


def _ranges(ids: Sequence[int]) -> str:
    """Return ids in order as llguidance writes them, those that follow each other as ranges."""
    ranges: list[list[int]] = []
    for id_ in ids:
        if ranges and id_ == ranges[-1][1] + 1:
            ranges[-1][1] = id_
        else:
            ranges.append([id_, id_])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")

"""A grammar in Lark's language as one regular expression, where it has no recursion (pure).

The text of a custom tool is a string of JSON, in the calls that most models write. A regular expression can be held within a
string, and a grammar cannot. Grammars of such tools are seldom recursive: those of patches and of commands are not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

__all__ = ["regex_of"]

MAX_CHARACTERS = 4096
"""Length of the regular expression, at most: a longer one is not held."""
MAX_DEPTH = 50
"""Levels of names in names, and of groups in groups, at most."""

_TOKEN = re.compile(
    r"""(?P<newline>[ \t\r]*(?:(?://|\#)[^\n]*)?\n\s*)|(?P<space>[ \t\r]+|(?://|\#)[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)|(?P<regex>/(?:\\.|[^/\\\n])+/[imsl]*)|(?P<alias>->[ \t]*\w+)
    |(?P<range>\.\.)|(?P<priority>\.\d+)|(?P<times>~[ \t]*\d+(?:[ \t]*\.\.[ \t]*\d+)?|\{\d+(?:,\d*)?\})
    |(?P<name>[?!]?[A-Za-z_]\w*)|(?P<directive>%\w+)|(?P<mark>[()\[\]|*+?:,.])""",
    re.VERBOSE,
)
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_DECIMAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)"
_COMMON = {
    "DIGIT": "[0-9]", "HEXDIGIT": "[0-9a-fA-F]", "INT": "[0-9]+", "SIGNED_INT": "[+-]?[0-9]+", "DECIMAL": _DECIMAL,
    "FLOAT": rf"(?:[0-9]+[eE][+-]?[0-9]+|{_DECIMAL}(?:[eE][+-]?[0-9]+)?)", "NUMBER": _NUMBER,
    "SIGNED_NUMBER": f"[+-]?{_NUMBER}", "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"', "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]", "LETTER": "[a-zA-Z]", "WORD": "[a-zA-Z]+", "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "WS_INLINE": r"[ \t]+", "WS": r"[ \t\f\r\n]+", "CR": r"\r", "LF": r"\n", "NEWLINE": r"(?:\r?\n)+",
}  # fmt: skip


class _Token(NamedTuple):
    kind: str
    text: str


class _NotRegularError(Exception):
    """The grammar is recursive, or has what is not known here."""


def regex_of(grammar: str) -> str | None:
    """Return the regular expression of the texts of a grammar; None for one that is recursive, large, or not understood."""
    with suppress(_NotRegularError):
        found = _Grammar(grammar).expression()
        return found if len(found) <= MAX_CHARACTERS else None
    return None


class _Grammar:
    """The definitions of a grammar, each as the tokens behind its colon."""

    def __init__(self, source: str) -> None:
        self._defined: dict[str, list[_Token]] = {}
        self._imported: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._ignored: list[list[_Token]] = []
        for line in _lines(list(_tokens(source))):
            self._read(line)

    def expression(self) -> str:
        ignored = "|".join(_Expression(self, tokens, "IGNORED", (), "").whole() for tokens in self._ignored)
        between = f"(?:{ignored})*" if ignored else ""
        return between + self.of("start", (), between)

    def of(self, name: str, within: tuple[str, ...], between: str) -> str:
        """Return the expression of a name, in the definitions of other names."""
        if name in self._imported:
            return self._imported[name]
        if name in self._known:
            return self._known[name]
        if name not in self._defined or name in within or len(within) > MAX_DEPTH:
            raise _NotRegularError
        self._known[name] = _Expression(self, self._defined[name], name, (*within, name), between).whole()
        return self._known[name]

    def _read(self, line: list[_Token]) -> None:
        first, rest = line[0], line[1:]
        if first.text == "%ignore":
            self._ignored.append(rest)
        elif first.text == "%import":
            self._import([token.text for token in rest])
        elif first.kind == "name" and [token.text for token in rest[:1]] == [":"]:
            self._defined[first.text.lstrip("?!")] = rest[1:]
        else:
            raise _NotRegularError

    def _import(self, words: Sequence[str]) -> None:
        names: Mapping[str, str]
        if words[:3] == ["common", ".", "("]:
            raise _NotRegularError
        if words[:2] == ["common", "("] and words[-1] == ")":
            names = {word: word for word in words[2:-1] if word != ","}
        elif len(words) in (3, 4) and words[:2] == ["common", "."]:
            names = {words[3].removeprefix("->").strip() if len(words) == 4 else words[2]: words[2]}
        else:
            raise _NotRegularError
        for name, common in names.items():
            if common not in _COMMON:
                raise _NotRegularError
            self._imported[name] = _COMMON[common]


def _tokens(source: str) -> Iterator[_Token]:
    at = 0
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None:
            raise _NotRegularError
        at = found.end()
        kind = found.lastgroup or ""
        if kind not in ("space", "priority"):
            yield _Token(kind, found[0])


def _lines(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Yield each definition and each directive; a line that does not begin with one continues the one before."""
    line: list[_Token] = []
    for at, token in enumerate(tokens):
        if token.kind != "newline":
            line.append(token)
            continue
        then = [each.text for each in tokens[at + 2 : at + 3]]
        begins = at + 1 < len(tokens) and (tokens[at + 1].kind == "directive" or then == [":"])
        if begins and line:
            yield line
            line = []
    if line:
        yield line


class _Expression:
    """The tokens of one definition, read as a regular expression.

    Args:
        grammar: with all definitions.
        tokens: of this one.
        name: what it defines. In a definition of a rule, what is ignored may come behind each terminal.
        within: the names whose definitions it is read for.
        between: the expression of what is ignored.
    """

    def __init__(
        self, grammar: _Grammar, tokens: Sequence[_Token], name: str, within: tuple[str, ...], between: str
    ) -> None:
        self._grammar = grammar
        self._tokens = tokens
        self._within = within
        self._between = between
        self._behind = "" if name.lstrip("_").isupper() else between
        self._at = 0
        self._depth = 0

    def whole(self) -> str:
        found = self._choice()
        if self._at < len(self._tokens):
            raise _NotRegularError
        return found

    def _next(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _choice(self) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotRegularError
        ways = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            ways.append(self._sequence())
        self._depth -= 1
        return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"

    def _sequence(self) -> str:
        found = ""
        while self._at < len(self._tokens) and self._next() not in ("|", ")", "]"):
            token = self._tokens[self._at]
            if token.kind == "alias":
                self._at += 1
                break
            found += self._repeated(self._item())
            if len(found) > MAX_CHARACTERS:
                raise _NotRegularError
        return found

    def _repeated(self, item: str) -> str:
        token = self._tokens[self._at] if self._at < len(self._tokens) else _Token("", "")
        if token.kind == "times":
            self._at += 1
            numbers = re.findall(r"\d+", token.text)
            more = "," if token.text.startswith("{") and "," in token.text and len(numbers) == 1 else ""
            return f"(?:{item}){{{','.join(numbers)}{more}}}"
        if token.text in ("*", "+", "?"):
            self._at += 1
            return f"(?:{item}){token.text}"
        return item

    def _item(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        if token.text in ("(", "["):
            inner = self._choice()
            if self._next() != {"(": ")", "[": "]"}[token.text]:
                raise _NotRegularError
            self._at += 1
            return f"(?:{inner}){'?' if token.text == '[' else ''}"
        if token.kind == "name":
            return self._named(token.text)
        if token.kind == "string":
            return self._string(token) + self._behind
        if token.kind == "regex":
            body, _, flags = token.text[1:].rpartition("/")
            kept = "".join(flag for flag in flags if flag in "ims")
            return f"(?{kept}:{body.replace(chr(92) + '/', '/')})" + self._behind
        raise _NotRegularError

    def _named(self, name: str) -> str:
        found = self._grammar.of(name, self._within, self._between)
        return f"(?:{found})" + (self._behind if name.lstrip("_").isupper() else "")

    def _string(self, token: _Token) -> str:
        text = _value(token.text)
        if self._next() == "..":
            end = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else _Token("", "")
            self._at += 2
            last = _value(end.text) if end.kind == "string" else ""
            if len(text) != 1 or len(last) != 1 or text > last:
                raise _NotRegularError
            return f"[{_escaped(text, in_class=True)}-{_escaped(last, in_class=True)}]"
        return f"(?{'i' if token.text.endswith('i') else ''}:{_escaped(text)})"


def _value(literal: str) -> str:
    try:
        value = ast.literal_eval(literal.removesuffix("i"))
    except (ValueError, SyntaxError):
        raise _NotRegularError from None
    return str(value)


def _escaped(text: str, *, in_class: bool = False) -> str:
    if in_class and text in "-\\]^[&~":
        return "\\" + text
    found = _SPECIAL.sub(lambda match: "\\" + match[0], text)
    return found.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")

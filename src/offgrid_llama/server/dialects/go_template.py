"""Prompt templates of Ollama's clients: those that Go's text/template would read, as Jinja.

Ollama's clients send templates such as ``{{ if .System }}<|system|>{{ .System }}{{ end }}<|user|>{{ .Prompt }}``. The parts
of such templates are translated: fields, if, else, end, range over the messages, and, or, not, eq, ne. Anything else is
refused by its name. A template without a field is taken for Jinja.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from offgrid_llama.server.api_error import ApiError

__all__ = ["as_jinja"]

_FIELDS = {
    ".System": "system", ".Prompt": "prompt", ".Response": "response", ".Messages": "messages", ".Role": "message.role",
    ".Content": "message.content",
}  # fmt: skip
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|[()]|[^\s()]+')
_FIELD = re.compile(r"(?:^|[\s($])\.[A-Z]")
_OPERATORS = {"and": "and", "or": "or"}
_COMPARISONS = {"eq": "==", "ne": "!="}
MAX_ACTIONS = 500
MAX_WORDS = 64
"""Words of an action, at most."""


def as_jinja(template: str) -> str:
    """Return a template as Jinja. Raises ApiError for what cannot be translated."""
    if template.count("{{") > MAX_ACTIONS:
        raise ApiError(400, f"template: more than {MAX_ACTIONS} actions", code="invalid_value", param="template")
    is_go = any(_FIELD.search(action) for _, _, action in _actions(template))
    return _Translation(template).text if is_go else template


def _actions(template: str) -> Iterator[tuple[int, int, str]]:
    """Yield where each action begins and ends, and what stands between its braces."""
    end = 0
    while (begin := template.find("{{", end)) >= 0 and (close := template.find("}}", begin + 2)) >= 0:
        end = close + 2
        yield begin, end, template[begin + 2 : close]


def _refused(what: str) -> ApiError:
    message = (
        f"template: {what!r:.80} is not supported here; send it as Jinja, which models' own templates are, or use raw"
    )
    return ApiError(400, message, code="invalid_value", param="template")


class _Translation:
    """A template in Go's language, as Jinja.

    Args:
        template: the text.

    Attributes:
        text: in Jinja. The template's own text is in strings, so that nothing in it is Jinja's. It ends where the answer
            begins, as Ollama's does.
    """

    def __init__(self, template: str) -> None:
        self._parts: list[str] = []
        self._open: list[str] = []
        at = 0
        strip = False
        for begin, end, action in _actions(template):
            self._say(template[at:begin], strip, action.startswith("-"))
            at, strip = end, action.endswith("-")
            words = _WORD.findall(action.removeprefix("-").removesuffix("-"))
            if words == [".Response"]:
                at = len(template)
                break
            self._act(words)
        self._say(template[at:], strip, False)
        while self._open:
            self._parts.append(self._open.pop())
        self.text = "".join(self._parts)

    def _say(self, text: str, strip_before: bool, strip_behind: bool) -> None:
        text = text.lstrip() if strip_before else text
        text = text.rstrip() if strip_behind else text
        if text:
            self._parts.append("{{ " + json.dumps(text) + " }}")

    def _act(self, words: list[str]) -> None:
        if len(words) > MAX_WORDS:
            raise _refused(" ".join(words))
        match words:
            case ["/*", *_]:
                return
            case ["if", *condition]:
                self._open.append("{% endif %}")
                self._parts.append(f"{{% if {self._value(condition)} %}}")
            case ["else", "if", *condition]:
                self._parts.append(f"{{% elif {self._value(condition)} %}}")
            case ["else"]:
                self._parts.append("{% else %}")
            case ["range", ".Messages" | "$.Messages"]:
                self._open.append("{% endfor %}")
                self._parts.append("{% for message in messages %}")
            case ["end"] if self._open:
                self._parts.append(self._open.pop())
            case [field] if field.removeprefix("$") in _FIELDS:
                self._parts.append(f"{{{{ {self._value([field])} }}}}")
            case _:
                raise _refused(" ".join(words))

    def _value(self, words: list[str]) -> str:
        """Return an expression in Jinja."""
        value, rest = self._term(words)
        if rest:
            raise _refused(" ".join(words))
        return value

    def _term(self, words: list[str]) -> tuple[str, list[str]]:
        """Return the call, or the value, with which some words begin, and the words behind it."""
        match words:
            case [("and" | "or") as name, *rest]:
                one, rest = self._argument(rest)
                other, rest = self._argument(rest)
                return f"({one} {_OPERATORS[name]} {other})", rest
            case [("eq" | "ne") as name, *rest]:
                one, rest = self._argument(rest)
                other, rest = self._argument(rest)
                return f"({one} {_COMPARISONS[name]} {other})", rest
            case ["not", *rest]:
                one, rest = self._argument(rest)
                return f"(not {one})", rest
        return self._argument(words)

    def _argument(self, words: list[str]) -> tuple[str, list[str]]:
        match words:
            case ["(", *rest]:
                value, rest = self._term(rest)
                if rest[:1] == [")"]:
                    return value, rest[1:]
            case [field, *rest] if field.removeprefix("$") in _FIELDS:
                return _FIELDS[field.removeprefix("$")], rest
            case [text, *rest] if text[0] == '"':
                try:
                    return json.dumps(json.loads(text)), rest
                except ValueError:
                    raise _refused(text) from None
        raise _refused(" ".join(words))

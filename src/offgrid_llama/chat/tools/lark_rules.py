"""LarkRules: the rules of one grammar in llguidance's Lark, as they are written (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from offgrid_llama.sampling.grammar.patterns import slashed

__all__ = ["LarkRules", "before"]


_NOTHING = "/[^\\x00-\\u{10FFFF}]/"
"""A terminal that no text matches."""
_ANY = "/(?s:.*)/"
"""A terminal that every text matches. With nothing but negations, a terminal would go on for bytes that are no text."""


class LarkRules:
    """Collects rules, terminals and JSON Schemas.

    Args:
        controls: the control tokens of the vocabulary, by their texts.
        marks: those of them that texts of the grammar may have.
        options: how JSON is written, in llguidance's words.
    """

    def __init__(self, controls: Mapping[str, int], marks: Sequence[str], options: Mapping[str, Any]) -> None:
        self.rules: list[str] = []
        self.schemas: list[dict[str, Any]] = []
        self.controls = controls
        self._marks = sorted(marks, key=len, reverse=True)
        self._options = options

    def rule(self, name: str, body: str) -> str:
        """Write a rule, or a terminal where the name has upper-case letters; return the name without its modifiers."""
        self.rules.append(f"{name}: {body}")
        return name.partition("[")[0]

    def json(self, name: str, schema: Mapping[str, Any]) -> str:
        """Return a reference to JSON under a schema."""
        self.schemas.append({"name": name, "json_schema": {**schema, "x-guidance": self._options}})
        return f"@{name}"

    def text(self, text: str) -> str:
        """Return a text as Lark writes it, with control tokens by their ids; empty for an empty one."""
        marks = [mark for mark in self._marks if mark in text]
        pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
        return " ".join(
            f"<[{self.controls[each]}]>" if each in self.controls else json.dumps(each) for each in pieces if each
        )

    def first_mark(self, text: str) -> str:
        """Return the text from its first control token on; empty where it has none."""
        at = min((text.find(mark) for mark in self._marks if mark in text), default=-1)
        return text[at:] if at >= 0 else ""

    def until(self, name: str, end: str, rules: Sequence[str] = ()) -> str:
        """Return the expression of a text that ends where ``end`` comes first, and of that end.

        Args:
            name: of the rules that are written for it.
            end: the text behind it.
            rules: regular expressions of Lark, with their slashes, that the text must match as a whole.
        """
        mark = self.first_mark(end)
        all_rules = [_ANY, *rules, *(before(end) if mark in ("", end) else ())]
        body = self.rule(f"BODY{name.upper()}", " & ".join(all_rules)) if len(all_rules) > 1 else _ANY
        if mark:
            return f"{body} {self.text(mark)}"
        return self.rule(f"raw{name}[lazy]", self.rule(f"FULL{name.upper()}", f"{body} /{slashed(re.escape(end))}/"))

    def in_order(
        self, name: str, items: Sequence[tuple[str, bool]], *, further: str = "", separator: str = "", least: int = 0
    ) -> str:
        """Return the expression of items in their order, some of which may be left out.

        Args:
            name: of the rules that are written for it.
            items: the expression of each, and whether it is required.
            further: the expression of more items behind them, any number.
            separator: the expression of the text between two.
            least: 1 where there must be one at least.
        """
        if not items and not further:
            return '""'
        for at in range(len(items), -1, -1):
            for begun in (False, True):
                between = f"{separator} " if separator and begun else ""
                ways = []
                if at < len(items):
                    ways.append(f"{between}{items[at][0]} {name}_{at + 1}_y")
                    ways += [] if items[at][1] else [f"{name}_{at + 1}_{'y' if begun else 'n'}"]
                else:
                    ways += ['""'] if begun or not least else []
                    ways += [f"{between}{further} {name}_{at}_y"] if further else []
                self.rule(f"{name}_{at}_{'y' if begun else 'n'}", " | ".join(ways) or _NOTHING)
        return f"{name}_0_n"


def before(end: str) -> list[str]:
    """Return the expressions of the texts that may stand before ``end``.

    Readers take the first place where it stands, with any spaces around it. So it must not be in the text, and its
    beginning must not be at the end of the text where it goes on in ``end`` itself, as a mark that begins and ends alike.
    """
    core = end.strip() or end
    begun = [core[:n] for n in range(1, len(core)) if end.startswith(core[n:])]
    inside = f"~/(?s:.*){_escaped(core)}(?s:.*)/"
    return [inside, f"~/(?s:.*)({'|'.join(map(_escaped, begun))})/"] if begun else [inside]


def _escaped(text: str) -> str:
    return slashed(re.escape(text))

"""TaggedArguments: reads arguments that are written one by one, each a name and a value between tags (pure).

Qwen3-Coder writes them like XML, ``<parameter=city>Bern</parameter>``; other models as Python does, ``city="Bern"``, or with
quotes of their own. They are passed on as one JSON object. A text without quotes is passed on as it arrives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence

from offgrid_llama.chat.marks import overlap

from .call_format import ARGUMENT, ArgumentTags, Style, ValueTags
from .literal import LiteralEnd, literal_json
from .scanner import Reading, Scanner
from .tool import Tool

__all__ = ["TaggedArguments"]

Give = Callable[[str], None]


class TaggedArguments:
    """Reads the arguments of a call, and passes them on as the text of a JSON object.

    Args:
        tags: how arguments are written.
        tools: the tools that may be called, by their names. The types of their parameters tell texts from other values
            where the format does not.
        scan: the text to read.
    """

    def __init__(self, tags: ArgumentTags, tools: Mapping[str, Tool], scan: Scanner) -> None:
        self._tags = tags
        self._tools = tools
        self._scan = scan
        self._values = list(dict.fromkeys(tags.values.values()))
        self._middles = [value.middle for value in self._values]
        self._name_end = min(self._middles, key=len).strip()[:1] or " "
        has_quotes = any(value.style is Style.OWN for value in self._values)
        self._quote = tags.values["string"].end.strip() if has_quotes else ""

    def read(self, name: str, behind: str, give: Give) -> Reading:
        """Read the arguments of a call of a tool; return whether they were whole.

        Args:
            name: of the tool.
            behind: the text that follows the last argument.
            give: takes the JSON text, piece by piece.
        """
        scan, tags = self._scan, self._tags
        n = 0
        while not (yield from scan.follows(behind, tags.begin)):
            if n and not (yield from scan.literal(tags.separator)):
                return False
            argument = yield from self._argument_name(self._tools[name].argument_names if name in self._tools else ())
            if argument is None:
                return False
            ways = yield from self._ways_of_value()
            if not ways:
                return False
            give(("{" if not n else ", ") + json.dumps(argument, ensure_ascii=False) + ": ")
            types = self._tools[name].argument_types(argument) if name in self._tools else frozenset()
            if not (yield from self._value(ways, types, argument, behind, give)):
                return False
            n += 1
        give("}" if n else "{}")
        return True

    def _argument_name(self, known: Sequence[str]) -> Generator[None, None, str | None]:
        """Read the name of an argument; return None where there is none.

        A name may have the character that ends names in it if it is one of those that are known.
        """
        if not (yield from self._scan.literal(self._tags.begin)):
            return None
        odd = [name for name in known if self._name_end in name]
        found = (yield from self._scan.which([name + self._name_end for name in odd], take=True)) if odd else None
        if found is not None:
            self._scan.at -= len(self._name_end)
            return odd[found]
        name = yield from self._scan.until(self._name_end)
        return None if name is None else name.strip()

    def _ways_of_value(self) -> Generator[None, None, Sequence[ValueTags]]:
        """Read the text between a name and its value; return the ways to write a value that have this text."""
        which = yield from self._scan.which(self._middles)
        if which is None:
            return ()
        middle = self._middles[which]
        yield from self._scan.literal(middle)
        return [value for value in self._values if value.middle == middle]

    def _value(
        self, ways: Sequence[ValueTags], types: frozenset[str], argument: str, behind: str, give: Give
    ) -> Reading:
        """Read one value and pass it on as JSON; return whether it was whole."""
        scan = self._scan
        way = ways[0]
        end = way.end.replace(ARGUMENT, argument)
        core = end.strip()
        raw = [each.style is Style.RAW for each in ways]
        if core and any(raw) and (all(raw) or types == {"string"}):
            return (yield from self._raw_text(way.middle, end, give))
        if core:
            found = yield from self._literal_before(core, types)
            if found is None:
                found = yield from scan.until(core)
        else:
            found = yield from self._literal_text([self._tags.separator, behind])
        if found is None:
            return False
        if any(raw):
            found = self._without_fence(_without_padding(found, way.middle, end))
        yield from scan.literal(end)
        give(literal_json(found, types, self._quote, raw=any(raw)))
        return True

    def _raw_text(self, middle: str, end: str, give: Give) -> Reading:
        """Pass on an unquoted text as it arrives, up to the text behind it; return whether that came."""
        scan, fence = self._scan, self._tags.fence
        skip = middle[len(middle.rstrip()) :]
        if skip:
            yield from scan.at_least(1)
            scan.skip(skip)
        core, padding = end.strip(), end[: len(end) - len(end.lstrip())]
        fenced = fence is not None and (yield from scan.literal(fence[0]))
        if fence is not None and fenced:
            core, padding = fence[1], ""
        give('"')
        while True:
            text = scan.rest
            at = text.find(core)
            sure = at if at >= 0 else len(text) - max(overlap(text, padding + core), overlap(text, core))
            if padding and text.endswith(padding, 0, sure):
                sure -= len(padding)
            give(json.dumps(text[:sure], ensure_ascii=False)[1:-1])
            if at >= 0:
                break
            scan.at += sure
            if scan.over:
                return False
            yield
        scan.at += at
        give('"')
        return (yield from scan.literal(core)) and (not fenced or (yield from scan.literal(end)))

    def _literal_before(self, core: str, types: frozenset[str]) -> Generator[None, None, str | None]:
        """Read a value of one of some types that shows its own end, up to the text behind it, which may stand in it, too.

        It is None, and nothing is read, where the value is a text without quotes, or ends in another way.
        """
        scan = self._scan
        while not (text := scan.rest.lstrip()) and not scan.over:
            yield
        if (not types or "string" in types) and {"{": "object", "[": "array"}.get(text[:1]) not in types:
            return None
        find_end = LiteralEnd([core[0]], self._quote).find
        while (n := find_end(scan.rest)) is None or (core.startswith(scan.rest[n:]) and scan.rest[n:] != core):
            if scan.over:
                return None
            yield
        found = scan.rest[:n]
        if not scan.rest.startswith(core, n):
            return None
        scan.at += n
        return found

    def _literal_text(self, behind: Sequence[str]) -> Generator[None, None, str | None]:
        """Read a value that shows its own end, as a quoted text or a number does; return it as it is written.

        ``behind`` has the texts that may follow it. It is None where none of them comes.
        """
        scan = self._scan
        yield from scan.spaces()
        ends = [text.strip()[0] for text in behind if text.strip()]
        find_end = LiteralEnd(ends, self._quote).find
        while (n := find_end(scan.rest)) is None and not scan.over:
            yield
        if not n:
            return None
        found = scan.text[scan.at : scan.at + n]
        scan.at += n
        return found

    def _without_fence(self, text: str) -> str:
        """Return a text without the fence around it that a format has where the text looks like markup."""
        fence = self._tags.fence
        if fence is not None and text.startswith(fence[0]) and text.endswith(fence[1]):
            return text[len(fence[0]) : len(text) - len(fence[1])]
        return text


def _without_padding(text: str, middle: str, end: str) -> str:
    """Return a value without the spaces that belong to the texts around it."""
    before, behind = middle[len(middle.rstrip()) :], end[: len(end) - len(end.lstrip())]
    return text.removeprefix(before).removesuffix(behind) if behind else text.removeprefix(before)

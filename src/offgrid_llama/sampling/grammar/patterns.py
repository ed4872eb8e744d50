"""The verdicts of llguidance on the patterns of a JSON Schema, and on a whole one."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from offgrid_llama.errors import GrammarError

__all__ = ["find", "matches", "matching", "may_match", "pattern_problem", "schema_problem", "slashed"]

_MAX_CHARACTERS = 4096
_MAX_BEGINNINGS = 200
_CONSTRUCTS = re.compile(
    r"\\.|\[(?:\^?\])?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\(\?[a-zA-Z]*\)|[()|^$]|[^\\\[()|^$]+", re.DOTALL
)


def slashed(pattern: str) -> str:
    """Return a pattern as it stands between slashes in llguidance's Lark."""
    return re.sub(
        r"\\.|/|\n",
        lambda match: {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}.get(match[0], match[0]),
        pattern,
        flags=re.DOTALL,
    )


@lru_cache(maxsize=512)
def pattern_problem(pattern: Any) -> str:
    """Return why a pattern cannot be held; empty where it can be, or where llguidance is not installed to tell."""
    if not isinstance(pattern, str):
        return f"must be a str, not {type(pattern).__name__}"
    if len(pattern) > _MAX_CHARACTERS:
        return f"has {len(pattern):,} characters; the limit is {_MAX_CHARACTERS:,}"
    problem = schema_problem({"type": "string", "pattern": pattern})
    return f"look-around is not supported: {json.dumps(pattern)[:80]}" if "look" in problem else problem


def schema_problem(schema: dict[str, Any]) -> str:
    """Return why llguidance cannot use a schema; empty where it can, or where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return ""
    source = json.dumps({"grammars": [{"json_schema": schema}]})
    problem: str = LLMatcher.validate_grammar(source, _byte_tokenizer())
    told = [line for line in problem.strip().splitlines() if not line.startswith("  while")]
    return told[-1].removeprefix("error: ")[:200] if told else ""


def find(pattern: str, text: str) -> bool | None:
    """Return whether a text has a match of a pattern in it; None where llguidance cannot tell.

    Its time grows with the text only: a pattern that would need too many states is given up.

    Raises GrammarError for a pattern that ``matching`` gives None for.
    """
    whole = matching(pattern)
    if whole is None:
        raise GrammarError(f"the pattern {pattern[:80]!r} has anchors within groups")
    matcher = _matcher(f"/={slashed(whole)}/")
    tokens = _byte_tokenizer().tokenize_str(f"={text}")
    fits = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
    return None if matcher.get_error() else fits


@lru_cache(maxsize=512)
def matches(pattern: str, text: str) -> bool:
    """Return whether a text has a match of a pattern in it, as far as llguidance can tell. Raises as ``find`` does."""
    return bool(find(pattern, text))


@lru_cache(maxsize=512)
def may_match(expression: str) -> bool:
    """Return whether some text matches a terminal of llguidance's Lark, given as its expression.

    Only some hundred beginnings are tried: rules that contradict each other late are taken for ones that a text matches.
    """
    matcher = _matcher(expression)
    if matcher.get_error():
        return False
    waiting = [matcher]
    for _ in range(_MAX_BEGINNINGS):
        if not waiting:
            return False
        matcher = waiting.pop()
        if matcher.is_accepting():
            return True
        mask = matcher.compute_bitmask()
        for byte in (each for each in range(256) if mask[each >> 3] >> (each & 7) & 1):
            further = matcher.deep_copy()
            if further.consume_token(byte):
                waiting.append(further)
    return True


def _matcher(expression: str) -> Any:
    from llguidance import LLMatcher

    source = json.dumps({"grammars": [{"lark_grammar": f"start: TEXT\nTEXT: {expression}"}]})
    return LLMatcher(_byte_tokenizer(), source, log_level=0)


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    """Return a tokenizer whose tokens are the 256 bytes: what is asked here is about texts, not about a model."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def matching(pattern: str) -> str | None:
    """Return a pattern of the whole texts that have a match of ``pattern`` in them; None where that cannot be written.

    ``^`` and ``$`` are read at the ends of alternatives only.
    """
    flags = re.match(r"\(\?([a-zA-Z]+)\)", pattern)
    ways = _alternatives(pattern[flags.end() :] if flags else pattern)
    found = [_whole(way) for way in ways or ()]
    if ways is None or None in found:
        return None
    return f"(?{flags[1] if flags else ''}:{'|'.join(each or '' for each in found)})"


def _alternatives(pattern: str) -> list[list[str]] | None:
    """Return the constructs of each alternative of a pattern; None for anchors within groups, and for flags."""
    pieces = _CONSTRUCTS.findall(pattern)
    if "".join(pieces) != pattern:
        return None
    ways: list[list[str]] = [[]]
    depth = 0
    for piece in pieces:
        depth += (piece == "(") - (piece == ")")
        if (depth and piece in ("^", "$")) or (piece.startswith("(?") and piece.endswith(")")):
            return None
        if piece == "|" and not depth:
            ways.append([])
        else:
            ways[-1].append(piece)
    return None if depth else ways


def _whole(pieces: list[str]) -> str | None:
    """Return the pattern of the whole texts of one alternative, given in its constructs."""
    begin = pieces[:1] == ["^"]
    end = len(pieces) > begin and pieces[-1] == "$"
    inner = pieces[begin : len(pieces) - end]
    if any(piece in ("^", "$") for piece in inner):
        return None
    return f"{'' if begin else '(?s:.*)'}{''.join(inner)}{'' if end else '(?s:.*)'}"

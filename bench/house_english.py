"""Find sentences with a turn of phrase that the style sheet replaces, in all that the repository says in English.

A phrase is looked for in running text: pages, docstrings, comments, and the messages of errors, logs and helps. Code in
backticks and in fenced blocks is not text. A sentence counts once. The phrases:

- `who`, `whom`, `whoever`: name the actor. `anyone who` and `people who` name one.
- `what there is`, and `that there is` at the end of a clause: say the thing.
- `so many`, `so much`: say "up to N" or "N at a time".
- `is to` and a verb: say it in the present tense.
- `nobody`, `everybody`, `somebody`, `anybody`: name the actor.
- `he`, `him`, `his`: the actor's name once more, or "its".
- `what` at the beginning of a statement: begin with the thing. `whatever`: name the thing. A hint, not a rule.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PHRASES = {
    "who": re.compile(r"(?<!\banyone )(?<!\bpeople )\bwho(?:m|ever|mever)?\b", re.IGNORECASE),
    "there is": re.compile(
        r"\b(?:what|all)\s+there\s+(?:is|are|was|were)\b|\bthat\s+there\s+(?:is|are)\b(?=\s*(?:[,.;:)]|not\b|none\b|$))",
        re.IGNORECASE,
    ),
    "so many": re.compile(r"\bso\s+(?:many|much)\b", re.IGNORECASE),
    "is to": re.compile(r"\b(?:is|are|was|were)\s+to\s+(?:be|[a-z]+)\b(?<!to the)(?<!to a)", re.IGNORECASE),
    "nobody": re.compile(r"\b(?:no|every|some|any)body\b", re.IGNORECASE),
    "he": re.compile(r"\b(?:he|him|his|himself)\b", re.IGNORECASE),
    "what": re.compile(r"(?<!.)What\b(?![^.;:]*\?)|\bwhatever\b", re.DOTALL),
}
HINTS = {"what"}
"""Phrases that are counted apart: good English has them, too."""
KINDS = ("readme", "changelog", "contributing", "docs", "docstrings", "comments", "messages", "tests", "bench")
"""Kinds of text. `docstrings`, `comments` and `messages` are those outside of `tests` and `bench`, which count apart."""

_PAGES = {"README.md": "readme", "CHANGELOG.md": "changelog"}
_HASH = {".sh", ".toml", ".yaml", ".yml", ".service", ".conf"}
_SLASHES = {".c", ".cpp", ".h", ".hpp", ".js", ".mjs", ".css"}
_SKIPPED = ("vendor/llama.cpp", "build", "dist", "tests/data", "docs/benchmarks/house", "docs/clients/node_modules")
_CODE = re.compile(r"``.+?``|`[^`\n]+`", re.DOTALL)
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_END = re.compile(r"[.!?:;]\s|\n\s*\n|\n\s*[-*|#]|\|")
_WORDS = re.compile(r"[A-Za-z]{2,}\W+[A-Za-z]+\W+[A-Za-z]+\W+[A-Za-z]{2,}")


@dataclass(frozen=True)
class Found:
    """A sentence: the kind of its text, where it begins, the phrase, and the words."""

    kind: str
    path: str
    line: int
    phrase: str
    sentence: str


Text = tuple[int, str]
"""A piece of running text, and the line that it starts in."""


def search(root: Path) -> list[Found]:
    """Return the sentences of a checkout, by path and line."""
    found: list[Found] = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        for kind, (line, words) in _texts(name, path.suffix, path.read_text(encoding="utf-8", errors="replace")):
            found += [Found(kind, name, *each) for each in sentences(words, line)]
    return sorted(found, key=lambda each: (each.path, each.line))


def sentences(text: str, line: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yield line, phrase and words of each sentence that has a phrase."""
    shown = _CODE.sub(lambda match: re.sub(r"[^\n]", "_", match[0]), text)
    ends = [0, *(match.end() for match in _END.finditer(shown)), len(shown)]
    for start, end in itertools.pairwise(ends):
        sentence = shown[start:end].lstrip(" \n*#|-")
        for phrase, pattern in PHRASES.items():
            match = pattern.search(sentence)
            if match:
                at = line + shown.count("\n", 0, end - len(sentence) + match.start())
                yield at, phrase, " ".join(text[start:end].split()).rstrip(" |")
                break


def _files(root: Path) -> Iterator[Path]:
    folders = ("src", "docs", "bench", "tests", ".ci", ".github", "vendor")
    for path in sorted([*root.glob("*"), *(path for folder in folders for path in (root / folder).rglob("*"))]):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not path.is_symlink() and not name.startswith(_SKIPPED) and "__pycache__" not in name:
            yield path


def _texts(name: str, suffix: str, text: str) -> Iterator[tuple[str, Text]]:
    place = name.split("/", maxsplit=1)[0]
    aside = place if place in ("tests", "bench") else None
    if suffix == ".md":
        prose = _FENCE.sub(_comments_of_fence, text)
        default = "docs" if place == "docs" else "contributing"
        yield aside or _PAGES.get(name, default), (1, prose)
    elif suffix in (".py", ".pyi"):
        for kind, piece in _python(text):
            if not (aside and kind == "messages"):
                yield aside or kind, piece
    elif suffix in _HASH or place == ".ci" or name.endswith("CMakeLists.txt"):
        for piece in _blocks(text, _hash):
            yield aside or "comments", piece
    elif suffix in _SLASHES:
        for piece in _blocks(text, _slashes):
            yield aside or "comments", piece


def _comments_of_fence(match: re.Match[str]) -> str:
    """Return what code in a page says to its reader, on its own lines, each a sentence by itself."""
    return "\n".join(f"| {_hash(line) or ''}" for line in match[0].split("\n"))


def _python(text: str) -> Iterator[tuple[str, Text]]:
    tree = ast.parse(text)
    docstrings = set(_docstrings(tree))
    yield from (("comments", piece) for piece in _blocks(text, None))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
            if _WORDS.search(words):
                yield "messages", (node.lineno, words)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            if id(node) in docstrings:
                yield "docstrings", (node.lineno, node.value)
            elif _WORDS.search(node.value):
                yield "messages", (node.lineno, node.value)


def _docstrings(tree: ast.AST) -> Iterator[int]:
    """Yield the ids of strings that stand alone: docstrings, also those below an assignment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def _blocks(text: str, comment: Callable[[str], str | None] | None) -> Iterator[Text]:
    """Yield comments, those of adjacent lines together."""
    comments: dict[int, str] = {}
    if comment is None:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("#: ")
    else:
        comments = {at: said for at, line in enumerate(text.split("\n"), 1) if (said := comment(line)) is not None}
    for at in sorted(comments):
        if at - 1 not in comments:
            after = next(line for line in itertools.count(at) if line not in comments)
            yield at, "\n".join(comments[line] for line in range(at, after))


def _hash(line: str) -> str | None:
    match = re.search(r"(?:^|\s)#(?!!)\s*(.*)", line)
    return match[1] if match else None


def _slashes(line: str) -> str | None:
    match = re.search(r"(?:^|\s)(?://|/\*|\*)\s+(.*)", line)
    return match[1] if match else None

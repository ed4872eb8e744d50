"""Grammars without recursion as regular expressions: the same texts; others are told apart."""

from __future__ import annotations

import re

import pytest

from offgrid_llama.server.dialects.lark_regex import MAX_CHARACTERS, regex_of

PATCH = """
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk
    | update_hunk
add_hunk: "*** Add File: " filename LF add_line+   // a file that is new
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change?
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change: (("+" | "-" | " ") /(.*)/ LF)+

%import common.LF
"""
EXPRESSION = """
start: expr
expr: term (SP ADD SP term)* -> add
    | term
?term: factor (SP MUL SP factor)*
!factor: INT
SP: " "
ADD: "+"
MUL.2: "*"
%import common.INT
"""
DOUBLING = "\n".join(["start: a0", *(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)), 'a40: "x"'])
DEEP = "\n".join(["start: a0", *(f"a{i}: a{i + 1}" for i in range(2000)), 'a2000: "x"'])


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        (
            PATCH,
            [
                "*** Begin Patch\n*** Add File: a\n+b\n+\n*** End Patch\n",
                "*** Begin Patch\n*** Delete File: a\n*** End Patch",
            ],
            ["*** Begin Patch\n*** End Patch\n", "*** Begin Patch\n*** Add File: a\nb\n*** End Patch\n", ""],
        ),
        (EXPRESSION, ["1", "1 + 2 * 33", "1 * 2 + 3"], ["1+2", "", "1 + ", "a"]),
        ('start: "a".."c"+ ["."] "x"i~2..3', ["abcxX", "b.xxx"], ["d", "a..xx", "ax"]),
        ('start: /a\\/b/i "\\n" "é\\"|[" | D{2,}\nD: /[0-9]/', ['A/b\né"|[', "01", "0123"], ["a/b", "0"]),
        ('start: A "=" B\nA: "a"\nB: /b+/\n%ignore " "\n%ignore /\\t/', ["a=b", " a =\t bb "], ["a = b b"]),
        ("%import common (INT, WORD)\n%import common.WS -> _W\nstart: INT _W WORD", ["1 a", "12 \n ab"], ["1a"]),
    ],
)
def test_the_same_texts(grammar: str, texts: list[str], others: list[str]) -> None:
    """The expression matches the texts of the grammar, and no others."""
    regex = regex_of(grammar)
    assert regex is not None
    assert [text for text in texts if not re.fullmatch(regex, text)] == []
    assert [text for text in others if re.fullmatch(regex, text)] == []


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "(" start ")" | "x"', 'start: a\na: b\nb: a "x"', "start: MISSING", "a: /x/", "", "start: /x",
        'start: ("x"', 'start: "x" )', "%import python.NAME\nstart: NAME", "%declare X\nstart: X", 'start: "b".."a"',
        "start: %json {}", "%import common.WS.X\nstart: WS", 'start: "x" .. y', DOUBLING, DEEP, "start: " + "(" * 5000,
        f'start: "{"x" * MAX_CHARACTERS}"',
    ],
)  # fmt: skip
def test_what_is_none(grammar: str) -> None:
    """A grammar that is recursive, large, or not understood, in bounded time."""
    assert regex_of(grammar) is None

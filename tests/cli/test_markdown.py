"""Markdown at a terminal: the same is written in the end, however it comes."""

from __future__ import annotations

import pytest

from offgrid_llama.cli.markdown import MarkdownStream, settled


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("a line", ""),
        ("a line\n", ""),
        ("a block\n\n", "a block\n\n"),
        ("a block\n\nmore\n\n", "a block\n\n"),
        ("\n\na block\n\n", "\n\na block\n\n"),
        ("```py\nx = 1\n\ny = 2\n", ""),
        ("```py\nx = 1\n\n```\n\nafter", "```py\nx = 1\n\n```\n\n"),
        ("~~~\n```\n\n~~~\n\nx", "~~~\n```\n\n~~~\n\n"),
        ("````\n```\n\n````\n\nx", "````\n```\n\n````\n\n"),
    ],
)
def test_whole_blocks(text: str, whole: str) -> None:
    """A block is whole at an empty line outside of code."""
    assert text[: settled(text)] == whole


def test_markdown_as_it_comes() -> None:
    """However it is cut, the same is written in the end, once, and nothing in it acts on the terminal."""
    import io

    from rich.console import Console

    text = (
        "# Title\n\nSome *words* and `code`.\n\n```py\nx = 1\n\ny = 2\n```\n\n- one\n- two\n\n\x1b[31mred\x1b]0;x\x07\n"
    )
    written = []
    for size in (1, 7, len(text)):
        console = Console(file=io.StringIO(), width=60, force_terminal=False)
        with MarkdownStream(console) as stream:
            for at in range(0, len(text), size):
                stream.push(text[at : at + size])
        assert isinstance(console.file, io.StringIO)
        written.append(console.file.getvalue())
    assert written[0] == written[1] == written[2]
    assert written[0].count("Title") == 1
    assert "y = 2" in written[0]
    assert "\x1b" not in written[0]
    assert "\\x1b[31mred" in written[0]

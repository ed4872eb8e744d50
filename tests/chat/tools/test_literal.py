"""chat/tools/literal.py: values as models write them."""

from __future__ import annotations

from offgrid_llama.chat.tools.literal import read_literal


def test_literals() -> None:
    """Values are read as JSON, as Python, with quotes of their own, and as texts where they are none of these."""
    for text, value in (
        ("1", 1), ("-1.5e3", -1500.0), ("true", True), ("True", True), ("None", None), ("'it\\'s'", "it's"),
        ("[1, 'a', None]", [1, "a", None]), ("{'a': {'b': (1, 2)}}", {"a": {"b": [1, 2]}}), ("[1,", "[1,"),
        ("{a:<|x|>b c<|x|>,d:[]}", {"a": "b c", "d": []}), ("007", "007"), ("12 Main St", "12 Main St"), ("", ""),
        ('"\\u00e9"', "é"), ("'\\x41\\n'", "A\n"), ("[" * 5000, "[" * 5000), ("{1}", "{1}"),
    ):  # fmt: skip
        assert read_literal(text, "<|x|>") == value, text

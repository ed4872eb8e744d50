"""A model's reasoning and its answer are told apart, however the text is cut into pieces."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.reasoning import Reasoning, Splitter, find_reasoning

MARKS = Reasoning("<think>", "</think>")


def split(pieces: list[str], marks: Reasoning | None = MARKS, *, inside: bool = False) -> tuple[str, str]:
    splitter = Splitter(marks, inside=inside)
    found = [splitter.push(piece) for piece in pieces]
    found.append(splitter.finish())
    return "".join(thought for thought, _ in found), "".join(answer for _, answer in found)


CASES = [
    ("<think>\nSo.\n</think>\n\nYes.", False, ("So.", "Yes.")),
    ("  <think>a < b </th</think>c</think>", False, ("a < b </th", "c</think>")),
    ("Yes. <think>no</think>", False, ("", "Yes. <think>no</think>")),
    ("\nSo. \n\n And so.\n</think>\nYes. ", True, ("So. \n\n And so.", "Yes. ")),
    ("<think></think>Yes", False, ("", "Yes")),
    ("<think>cut of", False, ("cut of", "")),
    ("<think>cut of</thi", False, ("cut of</thi", "")),
    ("<thi", False, ("", "<thi")),
    ("  Yes", False, ("", "  Yes")),
    ("", True, ("", "")),
]


@pytest.mark.parametrize(("text", "inside", "expected"), CASES)
def test_however_it_is_cut(text: str, inside: bool, expected: tuple[str, str]) -> None:
    """In one piece, by characters, and in pieces of any length."""
    rng = random.Random(1)
    assert split([text], inside=inside) == expected
    assert split(list(text), inside=inside) == expected
    for _ in range(50):
        rest, pieces = text, []
        while rest:
            n = rng.randint(1, 9)
            pieces.append(rest[:n])
            rest = rest[n:]
        assert split(pieces, inside=inside) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<thi", ("", "")), ("<think>cut of</thi", ("cut of", "")), ("<think>cut", ("cut", "")), ("Yes <", ("", "Yes <"))],
)
def test_cut_within_a_mark(text: str, expected: tuple[str, str]) -> None:
    """Where a text did not end by itself, the beginning of a mark is neither reasoning nor answer."""
    splitter = Splitter(MARKS)
    first, rest = splitter.push(text), splitter.finish(cut=True)
    assert (first[0] + rest[0], first[1] + rest[1]) == expected


def test_no_marks() -> None:
    """Then all is answer, at once."""
    assert split(["<think>", "a"], None) == ("", "<think>a")
    assert Splitter(None).push("<") == ("", "<")


def test_nothing_waits_longer_than_it_must() -> None:
    """Text that cannot be a mark is given out with its piece."""
    splitter = Splitter(MARKS)
    assert splitter.push("<think>So") == ("So", "")
    assert splitter.push(" it is </") == (" it is", "")
    assert splitter.push("b>") == (" </b>", "")
    assert splitter.push("</think>Ye") == ("", "Ye")
    assert splitter.push("s") == ("", "s")


TEMPLATES = {
    "Qwen-Qwen3-0.6B": Reasoning("<think>", "</think>"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": Reasoning("<think>", "</think>"),
    "ByteDance-Seed-OSS": Reasoning("<seed:think>", "</seed:think>"),
    "meta-llama-Llama-3.1-8B-Instruct": None,
    "google-gemma-2-2b-it": None,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_found_from_the_template(name: str, llama_cpp_dir: Path) -> None:
    """The marks are read off what the template renders."""
    source = (llama_cpp_dir / "models/templates" / f"{name}.jinja").read_text(encoding="utf-8")
    assert find_reasoning(ChatTemplate(source, bos_token="<s>", eos_token="</s>")) == TEMPLATES[name]

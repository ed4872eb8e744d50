"""Which calls are allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.golden_chats import known
from helpers.tools import TOOLS, WRITTEN
from offgrid_llama.chat.tools.call_grammar import tool_grammar


def accepts(grammar: og.Grammar, vocab: og.Vocab, text: str) -> bool:
    """Return whether a text, in the longest tokens that are allowed, is a whole one of a grammar."""
    guide = grammar.guide(vocab)
    controls = vocab.control_tokens()
    ids = np.arange(vocab.n_tokens)

    def allowed() -> Any:
        guide.fill()
        return np.frombuffer(guide.words(), np.uint32)[ids >> 5] >> (ids & 31).astype(np.uint32) & 1 == 1

    rest = text.encode()
    while rest:
        mask = allowed()
        control = next((id_ for mark, id_ in controls.items() if rest.startswith(mark.encode())), None)
        ways = [control] if control is not None and mask[control] else _beginnings(vocab, rest)
        token = next((id_ for id_ in ways if mask[id_]), None)
        if token is None:
            return False
        guide.accept(token)
        rest = rest[len(vocab.text(token).encode() if token == control else vocab.piece(token)) :]
    return bool(allowed()[vocab.eos])


def _beginnings(vocab: og.Vocab, text: bytes) -> list[int]:
    """Return the tokens that a text begins with, the longest first."""
    if not PIECES:
        PIECES.update({piece: token for token, piece in enumerate(vocab.pieces())})
    found = (PIECES.get(text[:n]) for n in range(min(len(text), 40), 0, -1))
    return [id_ for id_ in found if id_ is not None]


PIECES: dict[bytes, int] = {}


@pytest.mark.parametrize("name", WRITTEN)
def test_grammar(name: str, smollm2: og.Model) -> None:
    """A call of each tool is allowed, with text before it if none is required; one of another tool or shape is not."""
    form, vocab = known(name)[1], smollm2.vocab
    whole: list[list[tuple[str, dict[str, Any]]]] = [
        [("get_weather", {"city": "São Paulo"})], [("get_weather", {"city": "Bern", "days": -3})], [("clock", {})],
        [("clock", {"utc": True})], [("unit", {"unit": "kelvin", "scale": 1.5})],
    ]  # fmt: skip
    both: list[tuple[str, dict[str, Any]]] = [("clock", {}), ("get_weather", {"city": "Bern"})]
    none: list[list[tuple[str, dict[str, Any]]]] = [
        [("get_time", {"city": "Bern"})], [("get_weather", {"days": 3})], [("unit", {"unit": "rankine", "scale": 1.5})],
        [("clock", {"utc": "maybe"})], [("get_weather", {"city": "Bern", "where": "Switzerland"})],
    ]  # fmt: skip

    def written(calls: list[tuple[str, dict[str, Any]]], before: str = "") -> str:
        text = form.write([(call, arguments, "abcdefghi") for call, arguments in calls])
        return before + (text if before else text.lstrip())

    for required in (True, False):
        for parallel in (True, False):
            grammar = tool_grammar(form, TOOLS, vocab, required=required, parallel=parallel)
            assert [each for each in whole if not accepts(grammar, vocab, written(each))] == []
            assert [each for each in none if accepts(grammar, vocab, written(each))] == []
            assert accepts(grammar, vocab, written(both)) is (parallel and form.separator is not None)
            assert accepts(grammar, vocab, f"{form.headers.content if form.headers else ''}It is late.") is not required
            if form.anywhere and form.headers is None:
                assert accepts(grammar, vocab, written(whole[0], "I look. ")) is not required
                assert not accepts(grammar, vocab, written(none[0], "I look. "))

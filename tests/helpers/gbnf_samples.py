"""Texts that a grammar allows, and texts like them that it may not allow."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import offgrid_llama as og

NAMES = ["ARITHMETIC_GBNF", "CHESS_GBNF", "C_GBNF", "JAPANESE_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "LIST_GBNF"]
"""The grammars of llama-cpp-python."""


def verdict(text: str, grammar: og.Grammar, vocab: og.Vocab) -> str:
    """Return whether a grammar allows a text: "whole", "begun" where more must follow, or "refused"."""
    guide = grammar.guide(vocab)
    ids = np.arange(vocab.n_tokens)
    for token in vocab.tokenize(text, add_special=False):
        guide.fill()
        mask = np.frombuffer(guide.words(), np.uint32)
        if guide.error is not None or not (mask[ids[token] >> 5] >> np.uint32(token & 31)) & 1:
            return "refused"
        guide.accept(token)
    return "whole" if guide.may_end else "begun"


def sample(grammar: og.Grammar, vocab: og.Vocab, rng: random.Random) -> str:
    """Return a random text that the grammar allows, or the beginning of one."""
    guide = grammar.guide(vocab)
    ids = np.arange(vocab.n_tokens)
    text = b""
    for _ in range(rng.randrange(4, 40)):
        guide.fill()
        mask = np.frombuffer(guide.words(), np.uint32)
        groups: dict[bytes, list[int]] = {}
        for token in ids[(mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1 == 1]:
            piece = vocab.piece(int(token))
            if piece and len(piece) < 4 and piece.isascii():
                groups.setdefault(piece[:1], []).append(int(token))
        if not groups:
            break
        token = rng.choice(groups[rng.choice(sorted(groups))])
        guide.accept(token)
        text += vocab.piece(int(token))
    return text.decode()


def changed(text: str, rng: random.Random) -> str:
    """Return a text with a character left out, doubled or replaced."""
    at = rng.randrange(len(text)) if text else 0
    other: str = rng.choice(["", text[at : at + 1] * 2, *'0 \n"{'])
    return text[:at] + other + text[at + 1 :]


def gbnf_facts(module: Any, vocab: og.Vocab) -> list[Any]:
    """Return texts, and which of the grammars of a module allow them."""
    rng = random.Random(3)
    facts = []
    for name in NAMES:
        grammar = og.Grammar.gbnf(getattr(module, name))
        texts = [sample(grammar, vocab, rng) for _ in range(12)]
        texts += [changed(text, rng) for text in texts for _ in range(2)]
        facts += [[name, text, verdict(text, grammar, vocab)] for text in texts]
    return facts

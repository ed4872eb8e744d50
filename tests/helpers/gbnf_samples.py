"""Texts that a grammar allows, and texts like them that it may not allow."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import offgrid_llama as og

NAMES = ["ARITHMETIC_GBNF", "CHESS_GBNF", "C_GBNF", "JAPANESE_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "LIST_GBNF"]
"""The grammars of llama-cpp-python."""


OBJECTS = [
    "{}", "{} ", "{}\n \t", "{}\n\n", '{"a": 1e10}', '{"a":1e19}', '{"a":1E+101}', '{"a": -0.25e-3}', '{"a": 01}',
    '{"a": -7}',
    '{"a": 1234567890123456}', '{"a": 12345678901234567}', '{"a":"\\u00e9\\n"}', r'{"a":"\/"}', '{"a":"\x7f"}', '{"a":"\t"}',
    '{"a": [1, null,true , false]}', '{"a": {"b": []}, "c": ""}', '{"a" : 1}', '{a: 1}', "[]", '{"a": nul}', '{"a": 1.}',
]  # fmt: skip
FUNCTION = "int f(){%s}"
STATEMENTS = [
    "", "int x = 1;", "int x= 1;", "x= 1;", "x =\n1;", "f ();", "f (a, b);", "f (a,b);", "f();", "return x;",
    "return -(  y );",
    "while(a<b){return a;}", "while(a){}", "for(i = 0; i<n; i = i+1){}", "for(int i = 0; i<n; i = i+1){}", "for(;;){}",
    "if(a<=b){}", "if(a==b){}else{}", "if(a!=b){}else{return 1;}", "if(a>b){}else", "// x\n", "/* a * b */", "/* a **/",
    "return f(a, 1)*2;", "return --1;", "float x = a/2-b;", "x;", "return;",
]  # fmt: skip
BY_HAND = {
    "JSON_GBNF": OBJECTS,
    "CHESS_GBNF": OBJECTS,
    "JAPANESE_GBNF": OBJECTS,
    "JSON_ARR_GBNF": ["[\n]", "[]", "[\n1,\n2]", "[\n1, 2]", "[\n1] ", *("[\n" + text + "]" for text in OBJECTS)],
    "C_GBNF": ["", "int f(float x){}char g(){}", "void f(){}", *(FUNCTION % text for text in STATEMENTS)],
    "ARITHMETIC_GBNF": ["a=1\n", "a = 1\n", "1=a\nb2 - (c)*3=4\n", "a==1\n", "a=1+2\n", "-1=1\n", "(a+b) = c\n"],
    "LIST_GBNF": ["- a\n", "- a\n- b\n", "-a\n", "- \n", "- a\x0bb\n", "- a\u2028\n", "- ü\n"],
}
"""Texts that have each part of the grammars in them, and errors."""


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
        texts += BY_HAND[name]
        facts += [[name, text, verdict(text, grammar, vocab)] for text in texts]
    return facts

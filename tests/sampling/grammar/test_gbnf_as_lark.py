"""GBNF as llguidance follows it: the same texts as with llama.cpp, in bounded time."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og

EXPLODING = 'root ::= "a" root "b" | "a" root "c" | "d"'
GRAMMARS = {
    "choices": 'root ::= "yes" | "no" | "perhaps"',
    "prefixes": 'root ::= "a" "b" | "ab" "c" | "abd" [a-z]*',
    "repetitions": 'root ::= ("ab"{2,3} | [0-9]+ ","? ){1,4} "." ',
    "classes": 'root ::= [^a-z"\\\\]{2} [\\x41-\\u0043-] [一-龥]*',
    "escapes": 'root ::= "\\"\\n\\t\\x21" [\\]\\-x]+ . "é中🦙"',
    "none": 'root ::= "a" ("b" | ) ("" "c")? [] "d"{0} "e"',
    "rules": 'root ::= item ("," item)*\nitem ::= word | "(" root ")"\nword ::= [a-c]+',
    "a text with spaces": 'root ::= ("the " | "cat ")+',
}


def allowed(guide: Any, vocab: og.Vocab) -> Any:
    """Return which tokens a guide allows, as a mask."""
    guide.fill()
    assert guide.error is None
    ids = np.arange(vocab.n_tokens)
    return (np.frombuffer(guide.words(), np.uint32)[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1 == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GRAMMARS)
def test_the_same_tokens_as_with_llama_cpp(name: str, seed: int, smollm2: og.Model) -> None:
    """Along random texts, each token is allowed exactly where llama.cpp allows it, but for those that are forced."""
    vocab = smollm2.vocab
    grammar = og.Grammar.gbnf(GRAMMARS[name])
    guide, rng = grammar.guide(vocab), random.Random(seed)
    theirs: dict[str, Any] = {}

    def look(ids: Any, logits: Any) -> None:
        theirs["mask"] = np.zeros(vocab.n_tokens, bool)
        theirs["mask"][ids[np.isfinite(logits)]] = True

    nul = next(
        token for token in range(vocab.n_tokens) if vocab.piece(token) == b"\0"
    )  # llama.cpp takes it for no text
    with og.SamplerChain([grammar.sampler(vocab), og.samplers.custom(look), og.samplers.greedy()]) as chain:
        for _ in range(20):
            ours = allowed(guide, vocab)
            ours[nul] = False
            logits = np.zeros(vocab.n_tokens, np.float32)
            logits[rng.choice(np.flatnonzero(ours).tolist())] = 1
            token = chain.choose(logits)
            if ours.sum() == 1:
                assert theirs["mask"][ours.argmax()]
            else:
                assert np.flatnonzero(ours != theirs["mask"]).tolist() == []
            if vocab.is_eog(token):
                break
            guide.accept(token)


def test_tokens_by_name_and_by_id(smollm2: og.Model) -> None:
    """A token that the grammar names is that token alone; with ! it is any other one."""
    vocab = smollm2.vocab
    end = vocab.control_tokens()["<|im_end|>"]
    assert np.flatnonzero(allowed(og.Grammar.gbnf('root ::= <|im_end|> "a"').guide(vocab), vocab)).tolist() == [end]
    assert np.flatnonzero(allowed(og.Grammar.gbnf('root ::= <[7]> "a"').guide(vocab), vocab)).tolist() == [7]
    others = allowed(og.Grammar.gbnf("root ::= !<|im_end|>").guide(vocab), vocab)
    assert not others[end]
    assert others.sum() > vocab.n_tokens // 2
    for text, told in (("root ::= <nobody>", "names <nobody>"), ("root ::= <[99999]>", "there are only")):
        with pytest.raises(og.GrammarError, match=told):
            og.Grammar.gbnf(text).guide(vocab)


def test_grammars_of_llama_cpp(smollm2: og.Model, llama_cpp_dir: Path) -> None:
    """Each example of llama.cpp is followed: a random text of it is one that llama.cpp's own sampler allows."""
    vocab = smollm2.vocab
    paths = sorted((llama_cpp_dir / "grammars").glob("*.gbnf"))
    assert len(paths) > 5
    for path in paths:
        grammar = og.Grammar.gbnf(path.read_text(encoding="utf-8"))
        guide, rng = grammar.guide(vocab), random.Random(1)
        with og.SamplerChain([grammar.sampler(vocab), og.samplers.greedy()]) as chain:
            for _ in range(8):
                can = np.flatnonzero(allowed(guide, vocab))
                wanted = rng.choice([token for token in can.tolist() if vocab.piece(token) != b"\0"])
                logits = np.zeros(vocab.n_tokens, np.float32)
                logits[wanted] = 1
                assert chain.choose(logits) == wanted, path.name
                if vocab.is_eog(wanted):
                    break
                guide.accept(wanted)


def test_time_does_not_grow_with_the_text(smollm2: og.Model) -> None:
    """A token takes as long after thousands of others as at first, also where each doubles the ways to read the text."""
    vocab = smollm2.vocab
    (letter,) = vocab.tokenize("a", add_special=False)
    guide = og.Grammar.gbnf(EXPLODING).guide(vocab)

    def seconds(n: int) -> float:
        begin = time.thread_time()
        for _ in range(n):
            guide.fill()
            guide.accept(letter)
        return time.thread_time() - begin

    seconds(100)
    first = seconds(400)
    seconds(1000)
    assert seconds(400) < 5 * first


def test_requests_in_bounded_time(smollm2: og.Model) -> None:
    """Such a grammar ends by itself in the engine and in generate, with samplers of llama.cpp, too."""
    (letter,) = smollm2.vocab.tokenize("a", add_special=False)
    options: dict[str, Any] = {"logit_bias": {letter: 100.0}, "grammar": og.Grammar.gbnf(EXPLODING)}
    with og.Engine(smollm2, n_ctx=512) as engine:
        ways: list[dict[str, Any]] = [{}, {"dry_multiplier": 0.1, "dry_allowed_length": 1000}]
        for more in ways:
            text = engine.generate("x", sampling=og.SamplingParams(**options, **more), max_tokens=60).text
            assert text == "a" * 60
    assert og.generate(smollm2, "x", sampling=og.SamplingParams(**options), max_tokens=40).text == "a" * 40

"""Guesses under a grammar: what the engine says with them is what it says without, and they are right often."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

import offgrid_llama as og
from offgrid_llama._capi import ffi
from offgrid_llama.engine import FinishReason
from offgrid_llama.engine.planning.costs import Costs
from offgrid_llama.engine.planning.lookup import Lookup
from offgrid_llama.sampling.grammar.guide import Guide

NAMES = {"enum": ["Ann", "Anna", "Bob"]}
PEOPLE = {
    "type": "array", "minItems": 5, "maxItems": 5,
    "items": {
        "type": "object", "properties": {"first_name": NAMES, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["first_name", "age"], "additionalProperties": False,
    },
}  # fmt: skip
MAP = {"type": "object", "properties": {f"key_{i}": {"type": "boolean"} for i in range(6)}, "required": ["key_0", "key_5"],
       "additionalProperties": False}  # fmt: skip
TEXTS = {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 4, "maxItems": 8}
SCHEMAS: list[dict[str, Any]] = [PEOPLE, MAP, TEXTS]
SAMPLINGS = [
    og.SamplingParams(temperature=0), og.SamplingParams(seed=3, temperature=0.5, repeat_penalty=1.1, repeat_last_n=16),
    og.SamplingParams(seed=4, temperature=1.0, frequency_penalty=0.1, repeat_last_n=300),
]  # fmt: skip


class Eager(Lookup):
    """Guesses as much as it can, at any cost."""

    def guess(self, _costs: Costs, _rows: int, _guessed: int, room: int) -> list[int]:
        at = self._at
        return [] if at is None else self._text[at : at + max(room, 0)]

    def worth(self, choices: Sequence[bool]) -> int:
        self._choices = choices
        return len(choices)


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    """An engine of four sequences that guesses whenever it can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offgrid_llama.engine.submission.Lookup", Eager)
        with og.Engine(smollm2, n_seq_max=4, n_ctx=2048, n_threads=1) as engine:
            yield engine


def both(engine: og.Engine, prompt: str, **options: Any) -> og.Completion:
    """Return what is said with guesses, after a look that it is what is said without."""
    plain = engine.generate(prompt, lookup=False, **options)
    guessed = engine.generate(prompt, **options)
    assert guessed.tokens == plain.tokens
    assert (guessed.text, guessed.finish_reason, guessed.stop) == (plain.text, plain.finish_reason, plain.stop)
    return guessed


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seed", "penalties"])
@pytest.mark.parametrize("schema", SCHEMAS, ids=["people", "map", "texts"])
def test_nothing_changes(schema: dict[str, Any], sampling: og.SamplingParams, engine: og.Engine) -> None:
    """Greedily, and with the same random numbers and penalties, come the same tokens, and what the schema allows."""
    guessed = both(engine, "A list:", sampling=sampling, grammar=og.Grammar.json_schema(schema), max_tokens=300)
    if guessed.finish_reason is FinishReason.STOP:
        jsonschema.validate(json.loads(guessed.text), schema)


def test_guesses_are_right(engine: og.Engine) -> None:
    """Where objects repeat, most guesses are right, and there are fewer steps."""
    before = engine.stats()
    both(engine, "A list:", temperature=0, grammar=og.Grammar.json_schema(PEOPLE), max_tokens=300)
    after = engine.stats()
    n_guessed = after.guessed_tokens - before.guessed_tokens
    assert n_guessed > 20
    assert after.guessed_tokens_right - before.guessed_tokens_right > n_guessed / 2
    guessed_steps = engine.stats().n_steps
    engine.generate("A list:", temperature=0, grammar=og.Grammar.json_schema(PEOPLE), max_tokens=300)
    guessed_steps = engine.stats().n_steps - guessed_steps
    assert guessed_steps < after.n_steps - before.n_steps - guessed_steps


def test_any_length(engine: og.Engine) -> None:
    """However small max_tokens is, no answer is longer, and it is the beginning of the whole one."""
    options: dict[str, Any] = {"temperature": 0, "grammar": og.Grammar.json_schema(PEOPLE)}
    whole = engine.generate("A list:", lookup=False, max_tokens=300, **options)
    for n in range(1, len(whole.tokens) + 2):
        cut = engine.generate("A list:", max_tokens=n, **options)
        assert cut.tokens == whole.tokens[:n]
        assert cut.finish_reason is (FinishReason.STOP if n >= len(whole.tokens) else FinishReason.LENGTH)


def test_stop_strings_and_logprobs(engine: og.Engine) -> None:
    """A stop string ends the text where it does without guesses; logprobs are told for each token."""
    grammar = og.Grammar.json_schema(PEOPLE)
    for stop in ("}, {", "age", '"A', "]"):
        both(engine, "A list:", temperature=0, grammar=grammar, max_tokens=300, stop=stop)
    plain = engine.generate("A list:", temperature=0, grammar=grammar, max_tokens=200, logprobs=2, lookup=False)
    told = engine.generate("A list:", temperature=0, grammar=grammar, max_tokens=200, logprobs=2)
    assert told.tokens == plain.tokens
    ours, theirs = ([logprob for logprob, _ in each.logprobs] for each in (told, plain))
    assert ours == pytest.approx(theirs, abs=0.05)


def test_several_at_once(engine: og.Engine) -> None:
    """Requests with and without a grammar share steps, and some go in the middle: each other says what it says alone."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("one two three one two three one two", {"temperature": 0, "max_tokens": 40})
    ]
    for i, schema in enumerate([*SCHEMAS, PEOPLE]):
        asked.append((f"List {i}:", {"temperature": 0, "grammar": og.Grammar.json_schema(schema), "max_tokens": 120}))
    alone = [engine.generate(prompt, lookup=False, **options) for prompt, options in asked]
    for n in (1, 3, 7):
        with engine.submit("A list:", temperature=0, grammar=og.Grammar.json_schema(TEXTS), max_tokens=200) as gone:
            together = [engine.submit(prompt, **options) for prompt, options in asked]
            pieces = iter(gone)
            for _ in range(n):
                next(pieces, None)
        for completion, expected in zip(together, alone, strict=True):
            # The batches are of other shapes: a near tie may be decided otherwise, and all is other text from there on.
            completion.result()
            same = sum(a == b for a, b in zip(completion.tokens, expected.tokens, strict=False))
            assert completion.tokens == expected.tokens or same > 3
    for completion in together[1:]:
        if completion.finish_reason is FinishReason.STOP:
            json.loads(completion.text)
    assert engine.stats().n_failed_steps == 0


def test_guesses_that_are_wrong(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is guessed, also what the grammar forbids, and half of the time wrong, the same tokens come."""
    rng = random.Random(1)

    class Wild(Eager):
        def guess(self, costs: Costs, rows: int, guessed: int, room: int) -> list[int]:
            guess = super().guess(costs, rows, guessed, room) or self._text[: max(room, 0)]
            if guess and rng.random() < 0.5:
                guess[rng.randrange(len(guess))] = rng.choice([*smollm2.vocab.eog_tokens(), *range(200)])
            return guess

    monkeypatch.setattr("offgrid_llama.engine.submission.Lookup", Wild)
    grammar = og.Grammar.lark('start: item{8}\nitem: "abc " (/[d-f]/ | "ghijk") " lm" /[n-p]{1,2}/')
    with og.Engine(smollm2, n_seq_max=2, n_ctx=512, n_threads=1) as engine:
        for seed in range(8):
            sampling = og.SamplingParams(seed=seed, repeat_penalty=1.2, repeat_last_n=8, grammar=grammar)
            both(engine, "abc d lmn", sampling=sampling, max_tokens=20 + 10 * seed)
        stats = engine.stats()
        assert stats.guessed_tokens > stats.guessed_tokens_right > 50


# The guide ----------------------------------------------------------------------------------------------------------------


def words_after(guide: Guide, tokens: Sequence[int]) -> bytes:
    """Return the mask after some tokens."""
    other = guide.clone()
    for token in tokens:
        other.accept(token)
    other.fill()
    assert other.error is None
    return other.words()


@pytest.mark.parametrize("forces", [True, False])
def test_masks_are_those_that_come(smollm2: og.Model, forces: bool) -> None:
    """The mask foreseen for each row is the one that holds once its tokens have come; and the state stays as it is."""
    text = '[{"first_name": "Ann", "age": 12}, {"first_name": "Bob", "age": 3}'
    guide = og.Grammar.json_schema(PEOPLE).guide(smollm2.vocab)
    tokens: list[int] = []
    while len(smollm2.vocab.detokenize(tokens)) < len(text):  # as the engine would cut it
        rest = smollm2.vocab.tokenize(text[len(smollm2.vocab.detokenize(tokens)) :], add_special=False)
        guide.accept(rest[0])
        tokens += [rest[0], *(guide.forced() if forces else [])]
    guide.reset()
    seen = n_forced = 0
    while seen < len(tokens):
        before = words_after(guide, [])
        found = guide.foresee(tokens[seen : seen + 12], forces=forces)
        assert found == tokens[seen : seen + len(found)]
        assert guide.words() == before == words_after(guide, [])
        size = len(before)
        masks = bytes(ffi.buffer(guide.masks))
        for i in range(1, len(found) + 1):
            if guide.must[i] >= 0:
                n_forced += 1
                assert guide.must[i] == found[i]
            else:
                assert masks[(i - 1) * size : i * size] == words_after(guide, found[:i])
        assert guide.must[0] == guide.must[len(found)] == -1
        guide.accept(tokens[seen])
        seen += 1 + len(guide.forced() if forces else [])
    assert (n_forced > 10) == forces


def test_a_guess_that_may_not_come(smollm2: og.Model) -> None:
    """It ends the list, as does the end of the text, a token that ends texts, and what is other than what must come."""
    vocab = smollm2.vocab
    piece = {vocab.piece(token): token for token in range(vocab.n_tokens)}
    a, b, c, d = (piece[letter] for letter in (b"a", b"b", b"c", b"d"))
    guide = og.Grammar.regex("[ab]{4}").guide(vocab)
    assert guide.foresee([a, b, c, a]) == [a, b]
    assert guide.foresee([a, b, a, b, a]) == [a, b, a]  # after the fourth the text is whole
    assert guide.foresee([a, *vocab.eog_tokens(), a]) == [a]
    assert guide.foresee([c, a]) == guide.foresee([]) == []
    fork = og.Grammar.lark('start: (/[ab]/ "cccc" /[ab]/)+').guide(vocab)
    forced = fork.clone()
    forced.accept(a)
    must = forced.forced()
    assert fork.foresee([a, *must, b, a]) == [a, *must]  # what must come after the b does not fit in
    assert fork.foresee([a, *(d for _ in must), b]) == [a, *must]
    assert fork.foresee([a]) == []
    assert fork.foresee([a], forces=False) == [a]


def test_an_error_ahead(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where looking ahead fails, the text goes on without it, and it is not tried again."""
    letter = smollm2.vocab.tokenize("a", add_special=False)[0]
    guide = og.Grammar.regex("a{3}b").guide(smollm2.vocab)
    guide.accept(letter)
    before = words_after(guide, [])
    compute = guide._compute

    def failing(mask: Any) -> None:
        if mask == guide.mask:
            compute(mask)
        else:
            guide._matcher.consume_token(0)  # not allowed: there is no way back

    monkeypatch.setattr(guide, "_compute", failing)
    assert guide.foresee([letter, letter], forces=False) == []
    assert words_after(guide, []) == before
    assert guide.foresee([letter], forces=False) == []
    guide.accept(0)
    told = guide.error
    assert told is not None
    assert not np.frombuffer(guide.words(), np.uint8).any()
    assert guide.foresee([letter]) == []
    guide.reset()
    guide.accept(letter)
    assert words_after(guide, []) == before

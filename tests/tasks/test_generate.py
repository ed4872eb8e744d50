"""generate(): the loop from a prompt to text, what ends it, and what it leaves open."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.handles import n_children
from offgrid_llama.context.batch import Rows

PROMPT = "The capital of France is"
CHAT = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"

# The package's generate() hides its module of the same name.
generate_module: Any = importlib.import_module("offgrid_llama.tasks.generate")


@pytest.fixture
def say(smollm2: og.Model) -> Callable[..., og.Generation]:
    """Generate with SmolLM2, greedily and on one thread unless told otherwise."""
    return functools.partial(og.generate, smollm2, **{"temperature": 0, "n_threads": 1})  # type: ignore[arg-type]


Say = Callable[..., og.Generation]


# The loop -------------------------------------------------------------------------------------------------------------


def test_greedy_is_the_loop_over_the_nouns(smollm2: og.Model, say: Say) -> None:
    """Greedy text is what tokenize, decode, argmax and piece give when they are called one by one."""
    tokens = smollm2.vocab.tokenize(PROMPT)
    expected = []
    with og.Context(smollm2, n_ctx=256, n_threads=1) as context:
        batch = og.Batch(16)
        batch.add_sequence(tokens)
        for i in range(8):
            context.decode(batch)
            expected.append(context.argmax(-1))
            batch.clear()
            batch.add(expected[-1], len(tokens) + i, [0], logits=True)
    generation = say(PROMPT, max_tokens=8)
    assert generation.text == smollm2.vocab.detokenize(expected)
    assert generation.tokens == expected
    assert generation.text.startswith(" Paris")


def test_it_is_repeatable(say: Say) -> None:
    """The same prompt gives the same text."""
    assert say(PROMPT, max_tokens=12).text == say(PROMPT, max_tokens=12).text


def test_prompts_of_three_kinds(smollm2: og.Model, say: Say) -> None:
    """A prompt is str, bytes of UTF-8, or token ids."""
    expected = say(PROMPT, max_tokens=5).text
    assert say(smollm2.vocab.tokenize(PROMPT), max_tokens=5).text == expected
    assert say(tuple(smollm2.vocab.tokenize(PROMPT)), max_tokens=5).text == expected
    assert say(PROMPT.encode(), max_tokens=5).text == expected


def test_seeds(smollm2: og.Model) -> None:
    """A seed gives the same text again, and another seed another text."""
    draw = functools.partial(og.generate, smollm2, "Once upon a time", max_tokens=10, temperature=1.5, n_threads=1)
    assert draw(seed=1).text == draw(seed=1).text
    assert len({draw(seed=seed).text for seed in range(4)}) > 1
    assert len({draw().text for _ in range(4)}) > 1


DRY = og.SamplingParams(dry_multiplier=0.8)


def test_arguments_of_sampling(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in place of those of ``sampling``; a SamplerChain is made only where it takes one."""
    made: list[tuple[og.SamplingParams, type]] = []
    original = generate_module.sampler_for

    def make(params: og.SamplingParams, vocab: og.Vocab) -> og.FastSampler | og.SamplerChain:
        sampler: og.FastSampler | og.SamplerChain = original(params, vocab)
        made.append((params, type(sampler)))
        return sampler

    monkeypatch.setattr(generate_module, "sampler_for", make)
    arguments: dict[str, Any] = {"top_k": 7, "top_p": 0.5, "min_p": 0.25, "temperature": 0.75, "seed": 9}
    expected = og.SamplingParams(**arguments)
    assert og.generate(smollm2, "Hello", max_tokens=1, n_threads=1, **arguments).text
    params = og.SamplingParams(top_p=0.5, min_p=0.25, temperature=0.1, top_k=3, seed=9)
    assert og.generate(smollm2, "Hello", max_tokens=1, n_threads=1, sampling=params, top_k=7, temperature=0.75).text
    assert made == [(expected, og.FastSampler)] * 2
    made.clear()
    grammar = og.Grammar.gbnf('root ::= "yes"')
    assert og.generate(smollm2, "Hello", max_tokens=9, n_threads=1, grammar=grammar).text == "yes"
    assert og.generate(smollm2, "Hello", max_tokens=1, n_threads=1, grammar=grammar, sampling=DRY).text == "yes"
    assert [kind for _, kind in made] == [og.FastSampler, og.SamplerChain]


def test_sampling_params(smollm2: og.Model, say: Say) -> None:
    """SamplingParams are taken whole: what they forbid does not come, and greedy is greedy."""
    (paris,) = smollm2.vocab.tokenize(" Paris", add_special=False)
    params = og.SamplingParams(temperature=0, logit_bias={paris: -math.inf})
    generation = og.generate(smollm2, PROMPT, max_tokens=6, sampling=params, n_threads=1)
    assert generation.text
    assert paris not in generation.tokens
    free = og.generate(smollm2, PROMPT, max_tokens=6, sampling=og.SamplingParams(temperature=0), n_threads=1)
    assert free.text == say(PROMPT, max_tokens=6).text


def test_long_prompts_go_in_pieces(smollm2: og.Model, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt longer than n_batch is decoded in several batches, with the same result."""
    expected = say(PROMPT, max_tokens=5).text
    for n_batch in (1, 2, 3, 5):
        monkeypatch.setattr(generate_module, "Context", functools.partial(og.Context, n_batch=n_batch))
        assert say(PROMPT, max_tokens=5).text == expected
    assert len(smollm2.vocab.tokenize(PROMPT)) == 5


def test_special_tokens_of_a_prompt(smollm2: og.Model, say: Say) -> None:
    """Control tokens of a str prompt are text, unless parse_special asks for them."""
    assert say(CHAT, max_tokens=1, parse_special=True).n_prompt < say(CHAT, max_tokens=1).n_prompt


# The pieces -----------------------------------------------------------------------------------------------------------


def test_pieces_make_the_text(say: Say) -> None:
    """The pieces that come are the text, none is empty, and they are kept."""
    generation = say(PROMPT, max_tokens=12)
    pieces = list(generation)
    assert len(pieces) > 5
    assert all(pieces)
    assert generation.pieces == pieces
    assert generation.text == "".join(pieces)
    assert list(generation) == []


def test_text_after_some_pieces(say: Say) -> None:
    """Asking for the text waits for the rest, and gives what came before, too."""
    expected = say(PROMPT, max_tokens=8).text
    generation = say(PROMPT, max_tokens=8)
    first = next(iter(generation))
    assert expected.startswith(first)
    second = next(iter(generation))
    assert expected.startswith(first + second)
    assert generation.text == expected


def test_nothing_is_computed_before_it_is_asked_for(smollm2: og.Model, say: Say) -> None:
    """A generation that is never read computes nothing and leaves nothing open."""
    before = n_children(smollm2)
    generation = say(PROMPT)
    assert n_children(smollm2) == before
    assert (generation.n_prompt, generation.tokens, generation.finish_reason) == (5, [], None)
    del generation
    gc.collect()


def test_characters_come_whole(smollm2: og.Model, say: Say) -> None:
    """A character of several tokens comes in one piece."""
    grammar = og.Grammar.gbnf('root ::= "🦙𝄞🦙é"')
    pieces = list(say("Say llama:", grammar=grammar, max_tokens=20))
    assert "".join(pieces) == "🦙𝄞🦙é"
    assert "\ufffd" not in "".join(pieces)
    assert all(piece.isprintable() for piece in pieces)


def test_a_character_that_is_cut_off(say: Say) -> None:
    """Where max_tokens ends in the middle of a character, the text ends with U+FFFD."""
    grammar = og.Grammar.gbnf('root ::= "🦙🦙"')
    generation = say("Say llama:", grammar=grammar, max_tokens=1)
    assert generation.text == "\ufffd"
    assert generation.finish_reason == "length"


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7])
def test_max_tokens(n: int, say: Say) -> None:
    """It generates max_tokens tokens and says "length"."""
    generation = say(PROMPT, max_tokens=n)
    assert generation.text
    assert (len(generation.tokens), generation.finish_reason) == (n, "length")


def test_the_end_of_the_generation(smollm2: og.Model, say: Say) -> None:
    """The model's own end says "stop", and is no part of the tokens or the text."""
    generation = say(CHAT, max_tokens=60, parse_special=True)
    assert "4" in generation.text
    assert generation.finish_reason == "stop"
    assert not any(smollm2.vocab.is_eog(token) for token in generation.tokens)
    assert "<|im_end|>" not in generation.text


def test_stop_strings(say: Say) -> None:
    """The text ends before the stop string that comes first, and says "stop"."""
    whole = say(PROMPT, max_tokens=16).text
    for stop in (whole[5:9], [whole[10:12], whole[5:9], "never"], "Paris"):
        generation = say(PROMPT, max_tokens=16, stop=stop)
        first = min(whole.find(text) for text in ([stop] if isinstance(stop, str) else stop) if text in whole)
        assert generation.text == whole[:first]
        assert generation.finish_reason == "stop"
    generation = say(PROMPT, max_tokens=16, stop="never there")
    assert (generation.text, generation.finish_reason) == (whole, "length")


def test_a_stop_string_ends_the_work(say: Say) -> None:
    """No token is computed after the one that completes a stop string."""
    whole = say(PROMPT, max_tokens=16)
    assert whole.text
    generation = say(PROMPT, max_tokens=16, stop=" Paris")
    assert generation.text == ""
    assert len(generation.tokens) < 3


def test_a_stop_string_that_is_decided_at_the_end(say: Say) -> None:
    """A stop string that only the end of the text makes certain is a "stop", too."""
    text = say(PROMPT, max_tokens=4).text
    # The longer one begins earlier and is not complete: the shorter one counts once nothing more comes.
    stop = [text[-4:] + "\0", text[-2:]]
    generation = say(PROMPT, max_tokens=4, stop=stop)
    assert generation.text == text[: text.index(text[-2:])]
    assert generation.finish_reason == "stop"


def test_a_grammar(say: Say) -> None:
    """With a grammar the text is what it allows, greedily and at random, and ends with it."""
    grammar = og.Grammar.gbnf('root ::= [0-9]{2} "-" [0-9]{2}')
    for arguments in ({}, {"temperature": 1.5, "seed": 3}):
        generation = say("My number is ", grammar=grammar, max_tokens=20, **arguments)
        assert len(generation.text) == 5
        assert generation.text.replace("-", "").isdigit()
        assert generation.finish_reason == "stop"


def test_a_grammar_that_leaves_nothing(smollm2: og.Model, say: Say) -> None:
    """A step without an allowed token raises GrammarError out of the iteration, and closes everything."""
    ends = {token: -math.inf for token in range(len(smollm2.vocab)) if smollm2.vocab.is_eog(token)}
    before = n_children(smollm2)
    generation = say(PROMPT, grammar=og.Grammar.gbnf('root ::= "yes"'), sampling=og.SamplingParams(logit_bias=ends))
    with pytest.raises(og.GrammarError):
        _ = generation.text
    assert "".join(generation.pieces) == "yes"
    assert generation.finish_reason is None
    assert n_children(smollm2) == before


# Room -----------------------------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt without room for one more token is refused at the call, before a context is made, and nothing is cut."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a context was made")

    monkeypatch.setattr(generate_module, "Context", refuse)
    for n_ctx in (1, 4, 5):
        with pytest.raises(og.ContextLengthError) as caught:
            say(PROMPT, n_ctx=n_ctx)
        assert (caught.value.n_tokens, caught.value.n_ctx) == (5, n_ctx)
        assert "5 tokens" in str(caught.value)
    with pytest.raises(og.ContextLengthError) as caught:
        say([5] * 8192)
    assert (caught.value.n_tokens, caught.value.n_ctx) == (8192, 8192)


@pytest.mark.parametrize(("n_ctx", "n"), [(6, 1), (7, 2), (9, 4)])
def test_a_full_context(n_ctx: int, n: int, say: Say) -> None:
    """A context that is full ends the text with "length"; the last token needs no room of its own."""
    generation = say(PROMPT, n_ctx=n_ctx)
    assert generation.text
    assert (len(generation.tokens), generation.finish_reason) == (n, "length")


def test_room_by_default(smollm2: og.Model, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without n_ctx there is room for the prompt and max_tokens, up to what the model was trained for."""
    asked: list[int] = []

    def record(model: og.Model, *, n_ctx: int, **rest: Any) -> og.Context:
        asked.append(n_ctx)
        return og.Context(model, n_ctx=256, **rest)

    monkeypatch.setattr(generate_module, "Context", record)
    for max_tokens in (20, 10**9):
        with say(PROMPT, max_tokens=max_tokens) as generation:
            next(iter(generation))
    assert asked == [25, smollm2.n_ctx_train]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_tokens": 0}, ValueError),
        ({"max_tokens": -1}, ValueError),
        ({"max_tokens": 1.5}, TypeError),
        ({"max_tokens": None}, TypeError),
        ({"n_ctx": 0}, ValueError),
        ({"n_ctx": -5}, ValueError),
        ({"n_ctx": "big"}, TypeError),
        ({"temperature": -1}, ValueError),
        ({"temperature": math.nan}, ValueError),
        ({"temperature": "hot"}, TypeError),
        ({"top_k": -1}, ValueError),
        ({"top_p": 1.5}, ValueError),
        ({"min_p": -0.1}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**32}, ValueError),
        ({"n_threads": 0}, ValueError),
        ({"stop": ""}, ValueError),
        ({"stop": [5]}, TypeError),
        ({"grammar": 'root ::= "a"'}, TypeError),
        ({"sampling": {"top_k": 3}}, TypeError),
    ],
)
def test_arguments_are_checked_at_the_call(arguments: dict[str, Any], error: type[Exception], say: Say) -> None:
    """A wrong argument is named when generate() is called, and not when the text is asked for."""
    with pytest.raises(error, match=next(iter(arguments))):
        say(PROMPT, **arguments)


def test_biases_are_checked_at_the_call(say: Say) -> None:
    """A bias for a token that the model does not have is named when generate() is called."""
    with pytest.raises(ValueError, match="logit_bias token"):
        say(PROMPT, sampling=og.SamplingParams(logit_bias={49152: 1.0}))


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        ("", ValueError, "no tokens"),
        (b"", ValueError, "no tokens"),
        ([], ValueError, "no tokens"),
        ([1, -1], ValueError, r"prompt\[1\]"),
        ([49152], ValueError, r"prompt\[0\]"),
        ([1, "a"], TypeError, r"prompt\[1\]"),
        ("a\ud800", UnicodeEncodeError, "surrogates not allowed, in prompt$"),
        (b"\xff", UnicodeDecodeError, "invalid start byte, in prompt$"),
        (None, TypeError, "prompt must be several token ids, or a text, not NoneType"),
        (5, TypeError, "prompt must be several token ids, or a text, not int"),
    ],
)
def test_prompts_are_checked_at_the_call(prompt: Any, error: type[Exception], text: str, say: Say) -> None:
    """A prompt without tokens, or with tokens that the model does not have, is refused when generate() is called."""
    with pytest.raises(error, match=text):
        say(prompt)


def test_a_closed_model(smollm2_path: Path) -> None:
    """A closed model generates nothing."""
    model = og.Model(smollm2_path, vocab_only=True)
    model.close()
    with pytest.raises(og.ClosedError, match="Model"):
        og.generate(model, PROMPT)


# Nothing is left open -------------------------------------------------------------------------------------------------


def test_the_end_closes_everything(smollm2: og.Model, say: Say) -> None:
    """At the end of the text the context and the samplers are closed."""
    before = n_children(smollm2)
    generation = say(PROMPT, max_tokens=3)
    steps = iter(generation)
    next(steps)
    assert n_children(smollm2) > before
    list(steps)
    assert n_children(smollm2) == before


def test_close_in_the_middle(smollm2: og.Model, say: Say) -> None:
    """close(), or the end of a with block, frees the context; what was generated stays."""
    before = n_children(smollm2)
    with say(PROMPT, max_tokens=50) as generation:
        for _ in itertools.islice(generation, 2):
            pass
        assert n_children(smollm2) > before
    assert n_children(smollm2) == before
    assert len(generation.pieces) == 2
    assert generation.text == "".join(generation.pieces)
    generation.close()


def test_a_generation_that_is_dropped(smollm2: og.Model, say: Say) -> None:
    """A generation that is left early and forgotten frees its context, with the ResourceWarning of every owner."""
    gc.collect()
    before = n_children(smollm2)
    generation = say(PROMPT, max_tokens=50)
    for _ in generation:
        break
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del generation
        gc.collect()
    assert n_children(smollm2) == before
    assert {warning.category for warning in caught} <= {ResourceWarning}


def test_the_model_is_closed_in_the_middle(smollm2_path: Path) -> None:
    """Closing the model closes a generation's context; going on with it is ClosedError."""
    model = og.Model(smollm2_path)
    generation = og.generate(model, PROMPT, temperature=0, n_threads=1)
    next(iter(generation))
    model.close()
    with pytest.raises(og.ClosedError):
        next(iter(generation))
    generation.close()


def test_two_generations_at_once(say: Say) -> None:
    """Generations of one model take turns without disturbing each other."""
    prompts = [PROMPT, "Once upon a time, there was"]
    expected = [say(prompt, max_tokens=6).text for prompt in prompts]
    generations = [say(prompt, max_tokens=6) for prompt in prompts]
    for _ in itertools.zip_longest(*generations):
        pass
    assert [generation.text for generation in generations] == expected


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures(say: Say) -> None:
    """The prompt's tokens and times are told; before the second token there is no speed."""
    generation = say(PROMPT, max_tokens=1)
    assert (generation.tokens_per_second, generation.prompt_seconds) == (0, 0)
    assert generation.text
    assert generation.n_prompt == 5
    assert generation.prompt_seconds > 0
    assert generation.tokens_per_second == 0
    generation = say(PROMPT, max_tokens=4)
    assert generation.text
    assert generation.tokens_per_second == pytest.approx(3 / generation.decode_seconds)


def test_a_slow_reader_is_not_counted(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that the reader takes between two pieces is no time of the model's."""
    clock = [0.0]

    class Slow(og.Context):
        def decode(self, batch: Rows) -> None:
            super().decode(batch)
            clock[0] += 1

    monkeypatch.setattr(generate_module, "Context", Slow)
    monkeypatch.setattr(generate_module, "perf_counter", lambda: clock[0])
    generation = say(PROMPT, max_tokens=5)
    for _ in generation:
        clock[0] += 100
    assert generation.prompt_seconds == 1
    assert generation.decode_seconds == 4
    assert generation.tokens_per_second == 1


def test_repr(say: Say) -> None:
    """A generation shows its figures, and not its insides."""
    generation = say(PROMPT, max_tokens=2)
    assert generation.text
    assert "finish_reason=<FinishReason.LENGTH: 'length'>" in repr(generation)
    assert "_steps" not in repr(generation)

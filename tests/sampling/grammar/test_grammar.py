"""Grammars: generated text is what the grammar allows, and a chain survives what the grammar refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import pytest

import offgrid_llama as og
from offgrid_llama import samplers

WORDS = 'root ::= "yes" | "no" | "maybe"'


@pytest.fixture(scope="module")
def context(smollm2: og.Model) -> Iterator[og.Context]:
    """A context of a real model with room for the tests; each clears it first."""
    with og.Context(smollm2, n_ctx=256, n_outputs_max=1, n_threads=1) as context:
        yield context


@pytest.fixture
def start(context: og.Context) -> og.Context:
    """The context after a prompt, with logits for its last token."""
    context.memory.clear()
    batch = og.Batch(32)
    batch.add_sequence(context.model.vocab.tokenize("Question: what do you say?\nAnswer:"))
    context.decode(batch)
    return context


def constrained(grammar: str | og.Grammar, vocab: og.Vocab, *others: og.Sampler) -> og.SamplerChain:
    """Return a chain that draws at a temperature of 1.5 from what the grammar allows."""
    grammar = grammar if isinstance(grammar, og.Grammar) else og.Grammar.gbnf(grammar)
    return og.SamplerChain([grammar.sampler(vocab), *others, samplers.temp(1.5), samplers.dist(1)])


def generate(chain: og.SamplerChain, context: og.Context, most: int = 60) -> tuple[str, bool]:
    """Go on with the chain's tokens; return their text, and whether the end was drawn."""
    vocab = context.model.vocab
    pieces: list[bytes] = []
    batch = og.Batch(1)
    for _ in range(most):
        token = chain.sample(context, -1)
        if vocab.is_eog(token):
            return b"".join(pieces).decode(), True
        pieces.append(vocab.piece(token, special=True))
        batch.clear()
        batch.add(token, context.memory.positions(0).stop, [0], logits=True)
        context.decode(batch)
    return b"".join(pieces).decode("utf-8", "replace"), False


# Generated texts ------------------------------------------------------------------------------------------------------

GRAMMARS = {
    "words": (WORDS, "yes|no|maybe"),
    "digits": ('root ::= [0-9]{3} "-" [0-9]{4}', r"\d{3}-\d{4}"),
    "alternatives": ('root ::= ("ab" | "cd"){2,4} ";"?', r"(ab|cd){2,4};?"),
    "greek": ('root ::= [β-ψ]{3,6} "!"', r"[β-ψ]{3,6}!"),
    "json": (
        r"""
        root   ::= "{" space "\"name\": " string ", \"age\": " number "}"
        string ::= "\"" [a-zA-Z ]{1,8} "\""
        number ::= [1-9] [0-9]?   # no zero at the beginning
        space  ::= " "?
        """,
        r'\{ ?"name": "[a-zA-Z ]{1,8}", "age": [1-9][0-9]?\}',
    ),
    "negated": ('root ::= "(" [^()\\n]{1,5} ")" "\\n"', r"\([^()\n]{1,5}\)\n"),
    "recursive": ('root ::= "[" (root ("," root)?)? "]"', r"[\[\],]+"),
    "emoji": ('root ::= ("\\U0001F600" | "\\U0001F680"){1,3}', "[😀🚀]{1,3}"),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_only_allowed_text_is_generated(name: str, start: og.Context) -> None:
    """At a high temperature, too, the text is one that the grammar allows, and it ends where the grammar does."""
    source, pattern = GRAMMARS[name]
    with constrained(source, start.model.vocab) as chain:
        text, ended = generate(chain, start, 24)
    if ended:
        assert re.fullmatch(pattern, text), text
    else:
        assert name == "recursive"
        assert re.fullmatch(pattern, text), text
    if name == "recursive" and ended:
        assert text.count("[") == text.count("]")


def test_without_the_grammar_it_would_say_something_else(start: og.Context) -> None:
    """The check above does fail without the grammar."""
    with og.SamplerChain([samplers.temp(1.5), samplers.dist(1)]) as chain:
        text, _ = generate(chain, start, 5)
    assert not re.fullmatch("yes|no|maybe", text)


def test_greedy_takes_the_best_that_is_allowed(start: og.Context) -> None:
    """With greedy the token is the one with the largest logit among those that begin an allowed text."""
    vocab = start.model.vocab
    logits = start.logits(-1).copy()
    beginnings = ["y", "ye", "yes", "n", "no", "m", "ma", "may", "mayb", "maybe"]
    allowed = [token for token in range(len(vocab)) if vocab.piece(token).decode("utf-8", "replace") in beginnings]
    with og.SamplerChain([og.Grammar.gbnf(WORDS).sampler(vocab), samplers.greedy()]) as chain:
        assert chain.sample(start, -1) == max(allowed, key=lambda token: logits[token])


def test_tokens_by_name_and_by_id(start: og.Context) -> None:
    """A grammar may ask for a special token by its name or its id, which text never gives."""
    vocab = start.model.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    (begin,) = vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)
    for source in ('root ::= "a" <|im_start|> "b"', f'root ::= "a" <[{begin}]> "b"'):
        with constrained(source, vocab) as chain:
            for token in vocab.tokenize("a", add_special=False):
                chain.accept(token)
            with pytest.raises(og.GrammarError):
                chain.accept(end)
            assert chain.sample(start, -1) == begin
            assert vocab.piece(chain.sample(start, -1)) == b"b"


def test_another_root() -> None:
    """A grammar may begin with any of its rules."""
    source = 'root ::= "x"\nanswer ::= "yes"'
    assert og.Grammar.gbnf(source).root == "root"
    assert og.Grammar.gbnf(source, "answer").root == "answer"
    with pytest.raises(og.GrammarError, match="reply"):
        og.Grammar.gbnf(source, "reply")


def test_the_root_is_where_it_begins(start: og.Context) -> None:
    """The sampler begins with the grammar's root."""
    grammar = og.Grammar.gbnf('root ::= "x"\nanswer ::= "yes"', "answer")
    with constrained(grammar, start.model.vocab) as chain:
        assert generate(chain, start) == ("yes", True)


def test_a_grammar_is_used_many_times(start: og.Context, gemma: og.Model) -> None:
    """One grammar makes samplers for several chains and models, each with a state of its own."""
    grammar = og.Grammar.gbnf(WORDS)
    with constrained(grammar, start.model.vocab) as one, constrained(grammar, start.model.vocab) as two:
        yes = start.model.vocab.tokenize("yes", add_special=False)
        for token in yes:
            one.accept(token)
        for token in start.model.vocab.tokenize("no", add_special=False):
            two.accept(token)
    with constrained(grammar, gemma.vocab) as chain:
        for token in gemma.vocab.tokenize("maybe", add_special=False):
            chain.accept(token)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_refused_token_changes_nothing(start: og.Context) -> None:
    """accept() of a token that the grammar does not allow raises, and the chain goes on as if nothing had been."""
    vocab = start.model.vocab
    (bad,) = vocab.tokenize("Z", add_special=False)
    with constrained(WORDS, vocab) as chain:
        (first, *rest) = vocab.tokenize("maybe", add_special=False)
        chain.accept(first)
        with chain.clone() as clone:
            for _ in range(3):
                with pytest.raises(og.GrammarError, match="does not allow"):
                    chain.accept(bad)
            for token in rest:
                chain.accept(token)
            assert vocab.is_eog(chain.sample(start, -1))
            for token in rest:
                clone.accept(token)
            assert vocab.is_eog(clone.sample(start, -1))


def test_an_end_too_early_is_refused(start: og.Context) -> None:
    """The end of the generation is no token of an unfinished text, where llama.h aborts; it is one of a finished text."""
    vocab = start.model.vocab
    assert vocab.eos is not None
    with constrained(WORDS, vocab) as chain:
        with pytest.raises(og.GrammarError, match="does not allow"):
            chain.accept(vocab.eos)
        for token in vocab.tokenize("no", add_special=False):
            chain.accept(token)
        chain.accept(vocab.eos)


def test_nothing_after_the_end_of_the_text(start: og.Context) -> None:
    """A finished text allows the end only."""
    vocab = start.model.vocab
    with constrained(WORDS, vocab) as chain:
        for token in vocab.tokenize("yes", add_special=False):
            chain.accept(token)
        with pytest.raises(og.GrammarError):
            chain.accept(vocab.tokenize("s", add_special=False)[0])
        assert all(vocab.is_eog(chain.sample(start, -1)) for _ in range(3))


@pytest.mark.parametrize("last", [samplers.greedy, lambda: samplers.dist(1), lambda: samplers.mirostat_v2(1)])
def test_every_token_forbidden(last: Callable[[], og.Sampler], start: og.Context) -> None:
    """Where the other samplers forbid all that the grammar allows, the error is typed and the chain as before."""
    vocab = start.model.vocab
    ends = {token: -math.inf for token in range(len(vocab)) if vocab.is_eog(token)}
    chain = og.SamplerChain(
        [og.Grammar.gbnf(WORDS).sampler(vocab), samplers.logit_bias(vocab, ends), samplers.temp(1.5), last()]
    )
    with chain:
        for token in vocab.tokenize("yes", add_special=False):
            chain.accept(token)
        for _ in range(2):
            with pytest.raises(og.GrammarError, match="does not allow"):
                chain.sample(start, -1)
        chain.reset()
        assert vocab.piece(chain.sample(start, -1))[:1] in (b"y", b"n", b"m")


def test_reset_begins_the_text_anew(start: og.Context) -> None:
    """After reset() the grammar stands at its beginning."""
    vocab = start.model.vocab
    with constrained(WORDS, vocab) as chain:
        for token in vocab.tokenize("yes", add_special=False):
            chain.accept(token)
        chain.reset()
        for token in vocab.tokenize("maybe", add_special=False):
            chain.accept(token)


def test_a_clone_has_the_place_in_the_text(start: og.Context) -> None:
    """A clone goes on where its chain was, and neither moves the other."""
    vocab = start.model.vocab
    with constrained('root ::= "yes" "no"', vocab) as chain:
        yes, no = (vocab.tokenize(text, add_special=False) for text in ("yes", "no"))
        for token in yes:
            chain.accept(token)
        with chain.clone() as clone:
            for token in no:
                clone.accept(token)
            with pytest.raises(og.GrammarError, match="does not allow"):
                clone.accept(no[0])
            assert vocab.is_eog(clone.sample(start, -1))
        for token in no:
            chain.accept(token)


@pytest.mark.parametrize(
    "early", [samplers.top_k, samplers.top_p, samplers.min_p, samplers.typical, samplers.xtc, samplers.top_n_sigma]
)
def test_a_grammar_comes_first(early: Callable[[], og.Sampler], smollm2: og.Model) -> None:
    """Samplers that throw tokens away must not come before the grammar, which could be left without any."""
    with og.SamplerChain([early()]) as chain, og.Grammar.gbnf(WORDS).sampler(smollm2.vocab) as sampler:
        with pytest.raises(ValueError, match="grammar must come before"):
            chain.add(sampler)
        assert not sampler.closed


def test_a_grammar_may_follow_what_only_weighs(smollm2: og.Model, start: og.Context) -> None:
    """Samplers that keep all tokens may come before the grammar."""
    vocab = smollm2.vocab
    chain = og.SamplerChain(
        [samplers.temp(1.5), samplers.penalties(vocab, repeat=1.2), og.Grammar.gbnf(WORDS).sampler(vocab)]
    )
    with chain:
        chain.add(samplers.dist(1))
        assert generate(chain, start)[0] in ("yes", "no", "maybe")


def test_two_grammars(start: og.Context) -> None:
    """Two grammars in a chain allow what both allow."""
    vocab = start.model.vocab
    other = og.Grammar.gbnf('root ::= "ma" [a-z]+ | "perhaps"')
    with og.SamplerChain([other.sampler(vocab)]) as chain:
        chain.add(og.Grammar.gbnf(WORDS).sampler(vocab))
        chain.add(samplers.dist(1))
        with pytest.raises(og.GrammarError):
            chain.accept(vocab.tokenize("yes", add_special=False)[0])
        assert generate(chain, start)[0] == "maybe"


def test_a_refusal_of_one_of_two_grammars_changes_neither(start: og.Context) -> None:
    """A token that only the second grammar refuses does not move the first."""
    vocab = start.model.vocab
    with og.SamplerChain([og.Grammar.gbnf('root ::= "yes" | "no"').sampler(vocab)]) as chain:
        chain.add(og.Grammar.gbnf('root ::= "no"').sampler(vocab))
        chain.add(samplers.greedy())
        with pytest.raises(og.GrammarError):
            chain.accept(vocab.tokenize("yes", add_special=False)[0])
        assert generate(chain, start) == ("no", True)


def test_a_grammar_is_for_one_model(smollm2: og.Model, gemma: og.Model, start: og.Context) -> None:
    """A grammar's sampler knows the tokens of one model: chains and contexts of another refuse it."""
    with og.Grammar.gbnf(WORDS).sampler(gemma.vocab) as sampler:
        with (
            og.SamplerChain([samplers.penalties(smollm2.vocab)]) as chain,
            pytest.raises(ValueError, match="chain for"),
        ):
            chain.add(sampler)
        with og.SamplerChain([sampler, samplers.greedy()]) as chain, pytest.raises(ValueError, match="chain is for"):
            chain.sample(start, -1)


# Grammars that are refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", "no rule 'root'"),
        ("answer ::= \"x\"", "no rule 'root'"),
        ("root ::= other", "line 1, column 10: rule 'other' is not defined"),
        ('root ::= "x', "line 1, column 10: a string without an end"),
        ('root ::= "a"\nother = "b"', r"line 2, column 7: '::=' expected"),
        ("root ::= [a-z", "a character class without an end"),
        ('root ::= ("a" | "b"', "a group without an end"),
        ('root ::= "a")', "no meaning"),
        ("root ::= *", "nothing before it"),
        ('root ::= "a"{3,1}', "smaller number"),
        ('root ::= "a"{2001}', "2,000"),
        ('root ::= ("a"{0,50}){0,50}', "repetitions"),
        ('root ::= "\\q"', "escape"),
        ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "nested"),
        ('root ::= "a"\0', "NUL"),
        ("root ::= \"" + "a" * 65536 + '"', "65,5"),
        ("\n".join(f'r{i} ::= "a"' for i in range(2001)), "2,000 rules"),
        ("root ::= <nothing", "token"),
    ],
)  # fmt: skip
def test_grammars_that_do_not_parse(source: str, text: str) -> None:
    """A grammar that does not parse, or is over a limit, is a GrammarError that says where and why."""
    with pytest.raises(og.GrammarError, match=text):
        og.Grammar.gbnf(source)


@pytest.mark.parametrize("source", ["root ::= root", 'root ::= root "a" | "b"', 'root ::= a "x"\na ::= b?\nb ::= root'])
def test_left_recursion(source: str, smollm2: og.Model, capfd: pytest.CaptureFixture[str]) -> None:
    """A rule that begins with itself is refused at the latest when a sampler is made, and nothing is printed."""
    with pytest.raises(og.GrammarError):
        og.Grammar.gbnf(source).sampler(smollm2.vocab)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("token", ["<no such token>", "<[49152]>", "<[999999999]>"])
def test_tokens_that_are_not_there(token: str, smollm2: og.Model) -> None:
    """A grammar with a token that the vocabulary does not have is refused, and named."""
    with pytest.raises(og.GrammarError, match="token"):
        og.Grammar.gbnf(f"root ::= {token}").sampler(smollm2.vocab)


@pytest.mark.parametrize("source", [None, b'root ::= "a"', 5])
def test_grammars_are_text(source: object) -> None:
    """A grammar is a str."""
    with pytest.raises(TypeError, match="must be str"):
        og.Grammar.gbnf(source)  # type: ignore[arg-type]


def test_repr() -> None:
    """A grammar tells its size."""
    assert repr(og.Grammar.gbnf(WORDS)) == f"<Grammar: gbnf of {len(WORDS)} characters>"


def test_a_closed_model_makes_no_sampler(smollm2: og.Model) -> None:
    """A sampler needs an open model, and dies with it."""
    model = og.Model(smollm2.path, vocab_only=True)
    chain = constrained(WORDS, model.vocab)
    model.close()
    assert chain.closed
    with pytest.raises(og.ClosedError):
        chain.accept(5)
    with pytest.raises(og.ClosedError):
        og.Grammar.gbnf(WORDS).sampler(model.vocab)

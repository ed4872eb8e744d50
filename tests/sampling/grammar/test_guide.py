"""Guides: llguidance tells which tokens may come, in FastSampler, in chains and in the engine."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.children import RunChild
from helpers.grammars import dense
from offgrid_llama import samplers
from offgrid_llama.native.enums import TokenAttr
from offgrid_llama.sampling.fast_sampler import covers
from offgrid_llama.sampling.grammar import guide as guides

OBJECT = {
    "type": "object",
    "properties": {"first_name": {"type": "string", "maxLength": 12}, "age_in_years": {"type": "integer", "maximum": 150}},
    "required": ["first_name", "age_in_years"],
}  # fmt: skip
HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
GRAMMARS: dict[str, tuple[og.Grammar, str]] = {
    "schema": (og.Grammar.json_schema(OBJECT), r'\{"first_name": ".*", "age_in_years": -?\d+\}'),
    "regex": (og.Grammar.regex(r"[A-Z][a-z]{2,8}/[0-9]+\n?!"), r"[A-Z][a-z]{2,8}/[0-9]+\n?!"),
    "choices": (og.Grammar.choices(["yes", "no", "yes, but", 'a "quoted" \\ one\n', "Größe"]), None),  # type: ignore[dict-item]
    "lark": (
        og.Grammar.lark('start: item ("," item){0,5}\nitem: NAME "=" NAME\nNAME: /[a-z]{1,4}/'),
        r"\w+=\w+(,\w+=\w+){0,5}",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    """An engine of four sequences."""
    with og.Engine(smollm2, n_seq_max=4, n_ctx=2048, n_threads=1) as engine:
        yield engine


def is_right(name: str, text: str) -> bool:
    """Return whether a text is one of the grammar's."""
    grammar, pattern = GRAMMARS[name]
    if name == "choices":
        return text in json.loads(grammar.text)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize("name", GRAMMARS)
def test_texts_are_of_the_grammar(name: str, engine: og.Engine) -> None:
    """At a high temperature, in each way to generate them: by the engine, with processors, by a chain, and alone."""
    grammar, model = GRAMMARS[name][0], engine.model
    mirostat = og.SamplingParams(mirostat=2, grammar=grammar, seed=5)
    looked_at: list[int] = []

    def processor(tokens: Any, logits: npt.NDArray[np.float32]) -> None:
        looked_at.append(len(tokens))

    texts = []
    for seed in range(6):
        options = {**HOT, "seed": seed, "max_tokens": 100}
        texts.append(engine.submit("Answer:", grammar=grammar, **options))
        texts.append(engine.submit("Answer:", grammar=grammar, logits_processors=[processor], **options))
        texts.append(engine.submit("Answer:", grammar=grammar, logprobs=2, **options))
    texts.append(engine.submit("Answer:", sampling=mirostat, max_tokens=100))
    for completion in texts:
        text = completion.result().text
        if completion.finish_reason is og.FinishReason.STOP:
            assert is_right(name, text), text
    assert sum(completion.finish_reason is og.FinishReason.STOP for completion in texts) >= len(texts) / 3
    assert looked_at
    alone = og.generate(model, "Answer:", grammar=grammar, max_tokens=100, seed=1, n_threads=1)
    assert is_right(name, alone.text) or alone.finish_reason == "length"


def test_what_must_come_is_not_chosen(engine: og.Engine) -> None:
    """Tokens that the grammar leaves no choice for are appended: fewer steps than tokens, and their text is there."""
    grammar = og.Grammar.json_schema(OBJECT)
    sure: dict[str, Any] = {"temperature": 0, "max_tokens": 100}
    before = engine.stats().n_steps
    forced = engine.generate("A person:", grammar=grammar, **sure)
    n_steps = engine.stats().n_steps - before
    assert n_steps < len(forced.tokens)
    assert engine.model.vocab.detokenize(forced.tokens) == forced.text
    assert forced.finish_reason is og.FinishReason.STOP
    json.loads(forced.text)
    # With logprobs, each token is sampled, the forced ones too.
    told = engine.generate("A person:", grammar=grammar, logprobs=0, **sure)
    assert len(told.logprobs) == len(told.tokens)
    assert re.sub(r"[\w ]+(?=\",)|\d+", "", told.text) == re.sub(r"[\w ]+(?=\",)|\d+", "", forced.text)


def test_max_tokens_and_forced_ones(engine: og.Engine) -> None:
    """However small it is, no answer is longer, and it is the beginning of the whole one."""
    grammar = og.Grammar.json_schema(OBJECT)
    whole = engine.generate("A person:", grammar=grammar, temperature=0, max_tokens=100)
    for n in range(1, len(whole.tokens) + 2):
        cut = engine.generate("A person:", grammar=grammar, temperature=0, max_tokens=n)
        assert cut.tokens == whole.tokens[:n]
        ended = n >= len(whole.tokens)
        assert cut.finish_reason is (og.FinishReason.STOP if ended else og.FinishReason.LENGTH)


def test_neighbours_are_not_disturbed(engine: og.Engine) -> None:
    """Requests with and without a grammar share steps, and each says what it says alone."""
    grammar = og.Grammar.json_schema(OBJECT)
    story = engine.generate("Once upon a time", temperature=0, max_tokens=40).tokens
    people = [engine.generate("A person:", grammar=grammar, seed=seed, max_tokens=60).text for seed in range(3)]
    plain = engine.submit("Once upon a time", temperature=0, max_tokens=40)
    guided = [engine.submit("A person:", grammar=grammar, seed=seed, max_tokens=60) for seed in range(3)]
    assert plain.result().tokens == story
    assert [completion.result().text for completion in guided] == people


def test_cancelling_and_going_on(engine: og.Engine) -> None:
    """A guided request that is cancelled leaves nothing behind; what it began with is used by the next one."""
    grammar = og.Grammar.regex("[a-z ]{400}")
    with engine.submit("Letters:", grammar=grammar, max_tokens=300) as completion:
        pieces = iter(completion)
        next(pieces)
    assert completion.finish_reason in (og.FinishReason.CANCELLED, None)
    completion.result()
    assert engine.generate("Letters:", grammar=og.Grammar.choices(["b"]), max_tokens=5).text == "b"
    assert engine.stats().n_running == 0


def test_shifting_with_a_grammar(smollm2: og.Model) -> None:
    """A full sequence goes on with its later half, and the grammar with it."""
    with og.Engine(smollm2, n_seq_max=1, n_ctx=64, n_threads=1) as engine:
        completion = engine.generate(
            "Numbers:", grammar=og.Grammar.regex("([0-9]{1,3}, ){80}end"), max_tokens=400, n_keep=4
        )
    assert re.fullmatch("([0-9]{1,3}, ){80}end", completion.text)


def test_a_step_hook_sees_guided_requests(smollm2: og.Model) -> None:
    """With on_step the logits go through Python, and the grammar holds."""
    seen: list[int] = []
    with og.Engine(
        smollm2, n_seq_max=2, n_ctx=256, n_threads=1, on_step=lambda view: seen.append(len(view.answers))
    ) as engine:
        text = engine.generate("Answer:", grammar=og.Grammar.json_schema(OBJECT), **HOT, max_tokens=80).text
    assert seen
    assert text.startswith('{"first_name": "')


def test_what_cannot_be_chosen(engine: og.Engine) -> None:
    """Where grammar and biases leave nothing, the request fails with GrammarError, and no other."""
    vocab = engine.model.vocab
    grammar = og.Grammar.choices(["b"])
    none = {token: float("-inf") for token in range(vocab.n_tokens) if vocab.piece(token) == b"b"}
    failing = engine.submit("a", sampling=og.SamplingParams(grammar=grammar, logit_bias=none), max_tokens=4)
    other = engine.submit("Once upon a time", temperature=0, max_tokens=10)
    with pytest.raises(og.GrammarError, match="forbid them all"):
        failing.result()
    assert len(other.result().tokens) == 10


def test_a_sampler_of_its_own(smollm2: og.Model) -> None:
    """FastSampler and a chain leave what the grammar allows; clone and reset keep its state or lose it."""
    vocab = smollm2.vocab
    params = og.SamplingParams(grammar=og.Grammar.choices(["abcd"]), temperature=0)
    logits = np.zeros(vocab.n_tokens, np.float32)
    with og.SamplerChain([og.Grammar.choices(["abcd"]).sampler(vocab), samplers.greedy()]) as chain:
        text = vocab.piece(chain.choose(logits))
        with chain.clone() as other:
            for each in (chain, other):
                found = text
                while found != b"abcd":
                    found += vocab.piece(each.choose(logits))
                assert vocab.is_eog(each.choose(logits))
        chain.reset()
        assert vocab.piece(chain.choose(logits)) == text
    sampler = og.FastSampler(vocab, params)
    text = vocab.piece(sampler.choose(logits))
    for fast in (sampler, sampler.clone()):
        found = text
        while found != b"abcd":
            found += vocab.piece(fast.choose(logits))
        assert fast.guide is not None
        assert fast.guide.ended
    sampler.reset()
    assert vocab.piece(sampler.choose(logits)) == text


def test_sampling_params_want_a_grammar_that_fits() -> None:
    """Empty and wrong arguments are refused by name."""
    with pytest.raises(ValueError, match="pattern must not be empty"):
        og.Grammar.regex("")
    with pytest.raises(ValueError, match="texts must not be empty"):
        og.Grammar.choices([])
    with pytest.raises(ValueError, match=r"texts\[1\] must not be empty"):
        og.Grammar.choices(["a", ""])
    with pytest.raises(TypeError, match=r"texts\[0\] must be str, not int"):
        og.Grammar.choices([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="lark must be str"):
        og.Grammar.lark(b"start: A")  # type: ignore[arg-type]
    with pytest.raises(og.GrammarError, match="the limit is 65,536"):
        og.Grammar.regex("a" * 65_537)


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (og.Grammar.regex("(ab"), "unclosed group"),
        (og.Grammar.regex("a{3,1}"), "invalid repetition count range"),
        (og.Grammar.regex("(?=a)b"), "look-around"),
        (og.Grammar.lark("start: nothing"), "nothing"),
        (og.Grammar.lark("begin: /a/"), "start"),
        (og.Grammar.lark("start: " + "(" * 5000 + '"a"' + ")" * 5000), "grammar"),
        (og.Grammar.lark("start: <|no_such_token|>"), "no_such_token"),
        (og.Grammar.lark("start: a\na: a"), "no text that fulfills it"),
    ],
    ids=["group", "repetition", "look-around", "undefined", "no start", "deep", "token", "nothing"],
)
def test_what_llguidance_refuses(grammar: og.Grammar, told: str, smollm2: og.Model) -> None:
    """It is a GrammarError that says what is wrong, from the engine at submit()."""
    with pytest.raises(og.GrammarError, match=told):
        grammar.guide(smollm2.vocab)
    with og.Engine(smollm2, n_seq_max=1, n_ctx=64, n_threads=1) as engine, pytest.raises(og.GrammarError, match=told):
        engine.submit("a", grammar=grammar)


# The table of tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_pieces(name: str, request: pytest.FixtureRequest) -> None:
    """All at once they are what each is alone."""
    vocab: og.Vocab = request.getfixturevalue(name).vocab
    pieces = vocab.pieces()
    assert len(pieces) == vocab.n_tokens
    for token in [*range(0, vocab.n_tokens, 97), *vocab.eog_tokens()]:
        assert pieces[token] == vocab.piece(token, special=True)
    attrs = vocab.pieces_and_attrs()[1]
    assert [TokenAttr(attrs[token]) for token in range(50)] == [vocab.attr(token) for token in range(50)]


def test_pieces_of_no_vocabulary(tiny: og.Model) -> None:
    """There are none to be had; llama.cpp would abort."""
    with pytest.raises(og.TokenizeError, match="has no vocabulary"):
        tiny.vocab.pieces()


def test_the_table_is_built_once(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each model, also where many threads want it at the same time; and it goes with the model."""
    import llguidance

    built: list[int] = []
    make = llguidance.LLTokenizer

    def counted(*args: Any, **kwargs: Any) -> Any:
        built.append(1)
        return make(*args, **kwargs)

    monkeypatch.setattr(llguidance, "LLTokenizer", counted)
    model = og.Model(smollm2_path)
    grammar = og.Grammar.choices(["a", "b"])
    guides.prepare(model.vocab)
    threads = [threading.Thread(target=grammar.guide, args=(model.vocab,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    kept = weakref.ref(guides._compilers[model.vocab.handle])
    model.close()
    with pytest.raises(og.ClosedError):
        model.vocab.pieces()
    del model, threads, thread
    gc.collect()
    assert kept() is None


def test_forced_tokens_are_the_models_own(gemma: og.Model, smollm2: og.Model) -> None:
    """Text that must come is cut into tokens as the tokenizer would cut it, also where that puts a space before texts."""
    for model in (gemma, smollm2):
        guide = og.Grammar.choices(['{"first_name": "Ann Lee", "age_in_years": 3}']).guide(model.vocab)
        tokens: list[int] = []
        while not guide.ended:
            guide.fill()
            if not (forced := guide.forced()):
                (bits,) = np.nonzero(np.unpackbits(np.frombuffer(guide.words(), np.uint8), bitorder="little"))
                forced = [int(max(bits, key=lambda token: len(model.vocab.piece(int(token)))))]
                guide.accept(forced[0])
            tokens += forced
            assert guide.error is None
        assert b"".join(map(model.vocab.piece, tokens)).decode() == '{"first_name": "Ann Lee", "age_in_years": 3}'
        assert (
            len(tokens)
            <= len(model.vocab.tokenize('{"first_name": "Ann Lee", "age_in_years": 3}', add_special=False)) + 2
        )


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "qwen2", "deepseek-llm", "command-r", "gpt-2"])
def test_forced_tokens_are_the_text(name: str, llama_cpp_dir: Path) -> None:
    """No forced text loses anything, whichever characters begin it, and whichever tokens they make of the text before."""
    with og.Model(llama_cpp_dir / "models" / f"ggml-vocab-{name}.gguf", vocab_only=True) as model:
        cut = guides._Tokenizer(model.vocab)
        pieces = model.vocab.pieces()
        for text in (
            "\n",
            "\n\n",
            "\n\n\nfunction",
            "\n \n",
            " ",
            "  a",
            "a",
            "aa",
            ">\n\nfunction",
            "\t\n\n",
            "é\n",
            "🦙",
            "\x02",
        ):
            assert b"".join(pieces[token] for token in cut(text.encode())).decode() == text


def test_without_llguidance(tiny: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; GBNF is followed by llama.cpp."""
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    guides._compilers.pop(tiny.vocab.handle, None)
    with pytest.raises(og.GrammarError, match=r"pip install 'offgrid-llama\[chat\]'"):
        og.Grammar.choices(["a"]).guide(tiny.vocab)
    grammar = og.Grammar.gbnf('root ::= "a"')
    assert not grammar.guided
    assert not covers(og.SamplingParams(grammar=grammar))
    with grammar.sampler(tiny.vocab, bounded=True) as sampler:
        assert sampler.name == "grammar"


def test_what_is_compiled_is_kept_by_salt(engine: og.Engine) -> None:
    """A request with another salt compiles the same grammar again, as if it were new."""
    grammar = og.Grammar.regex("salted [a-z]{3}")
    compiled = guides._compiler(engine.model.vocab).kept

    def kept() -> list[str]:
        return [salt for salt, source in compiled if source == grammar._source]

    for salt, salts in (("", [""]), ("a", ["", "a"]), ("a", ["", "a"]), ("b", ["", "a", "b"])):
        assert engine.generate("a", grammar=grammar, max_tokens=20, cache_salt=salt).text.startswith("salted ")
        assert kept() == salts


def kept_bytes(vocab: og.Vocab) -> int:
    return guides._compiler(vocab).n_kept_bytes


def test_kept_grammars_are_bounded_by_their_bytes(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many large grammars come, the estimate of those kept stays below the limit, and the last one is kept."""
    monkeypatch.setattr(guides, "MAX_KEPT_BYTES", 50_000_000)
    for i in range(6):
        dense(i).guide(smollm2.vocab)
        assert kept_bytes(smollm2.vocab) <= 50_000_000
    monkeypatch.setattr(guides, "MAX_KEPT_BYTES", 1000)
    for i in range(2):
        dense(i).guide(smollm2.vocab)
        assert len(guides._compiler(smollm2.vocab).kept) == 1


def test_the_estimate_is_not_exceeded(run_child: RunChild, smollm2_path: Path) -> None:
    """The densest grammars that are known take no more memory than the estimate says."""
    source = """
        import sys
        import offgrid_llama as og
        from offgrid_llama.sampling.grammar import guide as guides
        from helpers.grammars import dense

        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        with og.Model(sys.argv[1]) as model:
            og.Grammar.json_schema({"type": "string"}).guide(model.vocab)
            compiler = guides._compiler(model.vocab)
            grammars = [dense(i) for i in range(4)]
            begin = memory(), compiler.n_kept_bytes
            for grammar in grammars:
                grammar.guide(model.vocab)
            print(memory() - begin[0], compiler.n_kept_bytes - begin[1])
    """
    done = run_child(source, smollm2_path, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert not done.returncode, done.stderr
    taken, estimate = map(int, done.stdout.split())
    assert estimate / 4 < taken <= estimate


def test_grammars_of_living_texts_are_bounded(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the texts that are not complete have grammars of the limit, another one is refused until one of them ends."""
    monkeypatch.setattr(guides, "MAX_KEPT_BYTES", 1)
    gc.collect()
    dense(0).guide(smollm2.vocab)
    monkeypatch.setattr(guides, "MAX_LIVING_BYTES", 3 * kept_bytes(smollm2.vocab))
    first, second = (og.FastSampler(smollm2.vocab, og.SamplingParams(grammar=dense(i))) for i in range(2))
    third = og.FastSampler(smollm2.vocab, og.SamplingParams(grammar=dense(1)))  # shares that of the second
    with pytest.raises(og.QueueFullError, match="grammars"):
        [dense(i).guide(smollm2.vocab) for i in range(2, 5)]
    first.close()
    dense(5).guide(smollm2.vocab)
    assert first.guide is not None
    assert first.guide.error is not None
    assert not any(first.guide.words())
    assert second.guide is not None
    assert third.guide is not None
    assert second.guide.error is third.guide.error is None

"""The raw layer in classes: a model, contexts, batches and samplers at work, and their ends."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.compat.llama_cpp import LlamaGrammar
from offgrid_llama.compat.llama_cpp import _internals as internals
from offgrid_llama.compat.llama_cpp import llama_cpp as raw

TEXT = b"abcabcab"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("internals") / "letters.gguf"
    write_tiny_llama(path, more=LETTERS)
    return path


@pytest.fixture
def model(path: Path) -> Iterator[internals.LlamaModel]:
    model = internals.LlamaModel(path_model=str(path), params=internals.LlamaModel.default_params())
    yield model
    model.close()


@pytest.fixture
def context(model: internals.LlamaModel) -> internals.LlamaContext:
    params = internals.LlamaContext.default_params()
    params.n_ctx = params.n_batch = 64
    return internals.LlamaContext(model=model, params=params)


def decoded(context: internals.LlamaContext, tokens: list[int], *, logits_all: bool = False) -> internals.LlamaBatch:
    """Decode the tokens of a text from its beginning on."""
    batch = internals.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
    context.kv_cache_clear()
    batch.set_batch(tokens, n_past=0, logits_all=logits_all)
    context.decode(batch)
    return batch


def row(context: internals.LlamaContext, i: int) -> Any:
    return np.ctypeslib.as_array(context.get_logits_ith(i), shape=(context.model.n_vocab(),)).copy()


def test_a_model_tells_what_our_own_does(model: internals.LlamaModel, path: Path) -> None:
    with og.Model(path) as ours:
        vocab = ours.vocab
        assert (model.n_vocab(), model.n_embd(), model.n_ctx_train()) == (vocab.n_tokens, ours.n_embd, ours.n_ctx_train)
        assert (model.size(), model.n_params(), model.desc()) == (ours.size, ours.n_params, ours.description)
        assert model.metadata() == ours.metadata
        assert (model.token_bos(), model.token_eos(), model.token_nl()) == (vocab.bos, vocab.eos, -1)
        assert [model.token_get_text(token) for token in range(9)] == [vocab.text(token) for token in range(9)]
        for add_bos, special in ((True, False), (False, True)):
            text = TEXT + b"<A>" * 20
            tokens = model.tokenize(text, add_bos=add_bos, special=special)
            assert tokens == vocab.tokenize(text, add_special=add_bos, parse_special=special)
        assert model.detokenize(model.tokenize(TEXT, True, False)) == TEXT
        assert model.detokenize([3], special=True) == b"<A>"
        assert model.detokenize([3]) == b""


def test_a_decode(model: internals.LlamaModel, context: internals.LlamaContext, path: Path) -> None:
    """The logits are those of our own Context, for all rows, and for the last one alone."""
    tokens = model.tokenize(TEXT, add_bos=True, special=False)
    with og.Model(path) as ours, og.Context(ours, n_ctx=64) as guarded:
        batch = og.Batch(len(tokens))
        batch.add_sequence(tokens, logits="all")
        guarded.decode(batch)
        expected = [guarded.logits(i).copy() for i in range(len(tokens))]
    decoded(context, tokens, logits_all=True)
    np.testing.assert_allclose([row(context, i) for i in range(len(tokens))], expected, atol=1e-4)
    last = decoded(context, tokens)
    np.testing.assert_allclose(row(context, -1), expected[-1], atol=1e-4)
    assert last.n_tokens() == len(tokens)
    with pytest.raises(ValueError, match=r"has room for 0 tokens more, not for 1"):
        last.add_sequence([1], 0, False)
    last.batch.pos[0] = 77  # a gap in a sequence
    with pytest.raises(RuntimeError, match=r"llama_decode returned -1"):
        context.decode(last)
    assert context.kv_cache_seq_rm(-1, 2, -1)
    assert raw.llama_memory_seq_pos_max(context.memory, 0) == 1


def test_samplers(model: internals.LlamaModel, context: internals.LlamaContext) -> None:
    """A greedy chain chooses the best token; biases, grammars, penalties and functions change which that is."""
    decoded(context, model.tokenize(TEXT, True, False))
    logits = row(context, -1)
    best = int(logits.argmax())

    def chosen(*add: Any) -> int:
        sampler = internals.LlamaSampler()
        for name, *arguments in add:
            getattr(sampler, name)(*arguments)
        sampler.add_greedy()
        token = sampler.sample(context, -1)
        sampler.close()
        sampler.close()
        return token

    assert chosen() == best
    assert chosen(("add_logit_bias", model.n_vocab(), {best: -100.0, 9: 100.0})) == 9
    (letter,) = model.tokenize(b"q", False, False)[-1:]
    assert chosen(("add_grammar", model, LlamaGrammar.from_string('root ::= "q"', verbose=False))) == letter
    others = [("add_top_k", 40), ("add_top_p", 0.9), ("add_min_p", 0.01), ("add_typical", 1.0), ("add_temp", 0.5)]
    assert chosen(*others, ("add_penalties", model.n_vocab(), 64, 1.1, 0.0, 0.0)) == best
    sampler = internals.LlamaSampler()
    sampler.add_penalties(penalty_last_n=64, penalty_repeat=1.0, n_vocab=9, penalty_present=0.0, penalty_freq=0.0)
    with pytest.raises(TypeError, match="llama_sampler_init_temp takes temp"):
        sampler.add_temp(0.5, 1)
    assert chosen(("add_dry", model, 0.8, 1.75, 2, 64, ["."]), ("add_top_n_sigma", 1.0)) == best


def test_functions_as_samplers(model: internals.LlamaModel, context: internals.LlamaContext) -> None:
    """A function sees the candidates and changes them; a chain with one has no copy."""
    decoded(context, model.tokenize(TEXT, True, False))
    seen: list[int] = []

    def louder(candidates: Any) -> None:
        array = candidates.contents
        seen.append(array.size)
        for i in range(array.size):
            if array.data[i].id == 11:
                array.data[i].logit = 1000.0

    sampler = internals.LlamaSampler()
    sampler.add_custom(louder)
    sampler.add_greedy()
    assert (sampler.sample(context, -1), seen) == (11, [model.n_vocab()])
    with pytest.raises(NotImplementedError, match="has no copy"):
        sampler.clone()
    sampler.close()


def test_copies_draw_the_same(model: internals.LlamaModel, context: internals.LlamaContext) -> None:
    """A copy goes on with the same random numbers; a reset begins anew."""
    decoded(context, model.tokenize(TEXT, True, False))
    sampler = internals.LlamaSampler()
    sampler.add_temp(3.0)
    sampler.add_dist(7)
    copy = sampler.clone()
    drawn = [sampler.sample(context, -1) for _ in range(20)]
    assert [copy.sample(context, -1) for _ in range(20)] == drawn
    sampler.reset()
    assert [sampler.sample(context, -1) for _ in range(20)] == drawn
    assert (sampler.get_seed(), len(set(drawn)) > 1) == (7, True)


def test_candidates(model: internals.LlamaModel, context: internals.LlamaContext) -> None:
    """The candidates of a choice can be made by hand, and llama.cpp's own functions change them."""
    candidates = internals.LlamaTokenDataArray(n_vocab=model.n_vocab())
    logits = np.arange(model.n_vocab(), dtype=np.single)
    for _ in range(2):
        candidates.copy_logits(logits)
        sampler = raw.llama_sampler_init_top_k(3)
        raw.llama_sampler_apply(sampler, ctypes.byref(candidates.candidates))
        raw.llama_sampler_free(sampler)
        assert candidates.candidates.size == 3
        assert sorted(candidates.candidates_data.id[:3]) == list(range(model.n_vocab() - 3, model.n_vocab()))


def test_ends(path: Path, context: internals.LlamaContext, model: internals.LlamaModel) -> None:
    """A model closes its contexts; a file that is not there, or is none, is a ValueError."""
    model.close()
    assert (context.ctx, model.model) == (None, None)
    model.close()
    with pytest.raises(ValueError, match="Model path does not exist"):
        internals.LlamaModel(path_model=f"{path}.no", params=internals.LlamaModel.default_params())
    path.with_name("none.gguf").write_bytes(b"none")
    with pytest.raises(ValueError, match="Failed to load model"):
        internals.LlamaModel(path_model=str(path.with_name("none.gguf")), params=internals.LlamaModel.default_params())


def test_normalize_embedding() -> None:
    assert internals.normalize_embedding([3.0, 4.0]) == pytest.approx([0.6, 0.8])
    assert internals.normalize_embedding([0.0, 0.0]) == [0.0, 0.0]

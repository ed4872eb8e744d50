"""infill(): the order of the fill-in-the-middle prompt, what samples it, and models that cannot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from twin import LETTERS, write_tiny_llama

import offgrid_llama as og
from offgrid_llama.infill import fim_prompt

PRE, SUF, MID = 3, 4, 5
FIM = {
    "tokenizer.ggml.fim_pre_token_id": PRE,
    "tokenizer.ggml.fim_suf_token_id": SUF,
    "tokenizer.ggml.fim_mid_token_id": MID,
}


def letters(text: str) -> list[int]:
    return [7 + ord(letter) - ord("a") for letter in text]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """The tiny llama with a token for each letter, and those for filling in the middle."""
    path = tmp_path_factory.mktemp("fim") / "coder.gguf"
    write_tiny_llama(path, more={**LETTERS, **FIM, "tokenizer.ggml.add_bos_token": True})
    with og.Model(path) as model:
        yield model


def test_the_order_of_the_prompt(coder: og.Model) -> None:
    """Prefix, suffix, middle, or suffix, prefix, middle, each after its token, and BOS before them all."""
    vocab = coder.vocab
    assert (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid, vocab.bos) == (PRE, SUF, MID, 1)
    assert fim_prompt(vocab, "ab", "cde") == [1, PRE, *letters("ab"), SUF, *letters("cde"), MID]
    assert fim_prompt(vocab, "ab", "cde", spm_infill=True) == [1, SUF, *letters("cde"), PRE, *letters("ab"), MID]
    assert fim_prompt(vocab, "", "") == [1, PRE, SUF, MID]


def test_texts_bring_no_control_tokens(coder: og.Model) -> None:
    """What looks like a control token in the texts is text."""
    tokens = fim_prompt(coder.vocab, "a<s><A>", "<C>b")
    assert [tokens.count(token) for token in (1, PRE, SUF, MID)] == [1, 1, 1, 1]


def test_no_bos(tmp_path: Path) -> None:
    """A model that wants no BOS gets none."""
    path = tmp_path / "coder.gguf"
    write_tiny_llama(path, more={**LETTERS, **FIM, "tokenizer.ggml.add_bos_token": False})
    with og.Model(path, vocab_only=True) as model:
        assert fim_prompt(model.vocab, "a", "b") == [PRE, *letters("a"), SUF, *letters("b"), MID]


def test_infill_is_generate_with_its_prompt(coder: og.Model) -> None:
    """The text is what generate() gives for the prompt, with top-k, top-p and the infill sampler."""
    params = og.SamplingParams(samplers=("top_k", "top_p", "infill"), temperature=0)
    for spm_infill in (False, True):
        prompt = fim_prompt(coder.vocab, "abc", "xyz", spm_infill=spm_infill)
        expected = og.generate(coder, prompt, sampling=params, max_tokens=8, n_threads=1)
        with og.infill(
            coder, "abc", "xyz", spm_infill=spm_infill, sampling=params, max_tokens=8, n_threads=1
        ) as generation:
            assert generation.text == expected.text
        assert generation.tokens == expected.tokens
        assert generation.n_prompt == len(prompt)


def test_the_usual_samplers(coder: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SamplingParams the chain is top-k, top-p, infill, dist; with them it is theirs."""
    seen: list[tuple[str, ...]] = []
    chain = og.SamplingParams.chain

    def record(params: og.SamplingParams, vocab: og.Vocab) -> og.SamplerChain:
        made = chain(params, vocab)
        seen.append(made.names)
        return made

    monkeypatch.setattr(og.SamplingParams, "chain", record)
    assert og.infill(coder, "ab", "cd", max_tokens=1, n_threads=1).tokens == []  # none before it is asked for
    for sampling in (None, og.SamplingParams(top_k=5, samplers=("top_k", "infill"))):
        list(og.infill(coder, "ab", "cd", max_tokens=2, n_threads=1, sampling=sampling))
    assert seen == [("top-k", "top-p", "infill", "dist"), ("top-k", "infill", "dist")]


def test_a_stop_string_and_room(coder: og.Model) -> None:
    """Stop strings end the text, and texts that do not fit are refused whole."""
    params = og.SamplingParams(temperature=0)
    whole = og.infill(coder, "abc", "xyz", sampling=params, max_tokens=6, n_threads=1).text
    stopped = og.infill(coder, "abc", "xyz", sampling=params, max_tokens=6, n_threads=1, stop=whole[2])
    assert stopped.text == whole[: whole.index(whole[2])]
    with pytest.raises(og.ContextLengthError) as caught:
        og.infill(coder, "abc", "xyz", n_ctx=8)
    assert (caught.value.n_tokens, caught.value.n_ctx) == (10, 8)


@pytest.mark.parametrize("missing", [*map(list, itertools.combinations(FIM, 1)), list(FIM)])
def test_a_model_without_the_tokens(missing: list[str], tmp_path: Path) -> None:
    """A model that lacks one of the three tokens is a TokenizeError that says so."""
    path = tmp_path / "plain.gguf"
    write_tiny_llama(path, more={**LETTERS, **{key: token for key, token in FIM.items() if key not in missing}})
    with og.Model(path) as model:
        for call in (lambda: og.infill(model, "a", "b"), lambda: fim_prompt(model.vocab, "a", "b")):
            with pytest.raises(og.TokenizeError, match=r"plain\.gguf cannot fill in the middle"):
                call()


def test_smollm2_has_none(smollm2: og.Model) -> None:
    """A chat model was not trained for it."""
    with pytest.raises(og.TokenizeError, match="cannot fill in the middle"):
        og.infill(smollm2, "def f():", "return x")

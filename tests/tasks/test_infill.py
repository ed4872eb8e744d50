"""infill(): the order of the fill-in-the-middle prompt, what samples it, and models that cannot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.infill import FILES, FIM, MID, NEWLINE, PRE, REP, SEP, SUF
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.tasks.infill import fim_prompt


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
    """A part of the texts that looks like a control token is text."""
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """One that was trained on whole projects."""
    path = tmp_path_factory.mktemp("fim") / "project.gguf"
    write_tiny_llama(path, more={**LETTERS, **FIM, **FILES, "tokenizer.ggml.add_bos_token": True})
    with og.Model(path) as model:
        yield model


def named(name: str) -> list[int]:
    return [*letters(name), NEWLINE]


def test_files_of_a_project(project: og.Model, coder: og.Model) -> None:
    """They come before the prefix, each behind its name, with names for the project and the file at hand."""
    vocab = project.vocab
    middle = [PRE, *letters("ab"), SUF, *letters("cd"), MID]
    assert fim_prompt(vocab, "ab", "cd") == [1, *middle]
    files = {"x": "ef", "y": "gh"}
    expected = [SEP, *named("x"), *letters("ef"), SEP, *named("y"), *letters("gh"), SEP]
    assert fim_prompt(vocab, "ab", "cd", files=files, file_name="z", repo_name="r") == [
        1, REP, *named("r"), *expected, *named("z"), *middle,
    ]  # fmt: skip
    assert fim_prompt(vocab, "ab", "cd", files=list(files.items())) == [
        1, REP, *named("project"), *expected, *named("file"), *middle,
    ]  # fmt: skip
    assert fim_prompt(vocab, "ab", "cd", file_name="z") == [
        1, REP, *named("project"), SEP, *named("z"), *middle,
    ]  # fmt: skip
    each: list[dict[str, Any]] = [{"files": files}, {"file_name": "z"}, {"repo_name": "r"}]
    for more in each:
        with pytest.raises(og.TokenizeError, match=r"coder\.gguf takes no files.*FIM_SEP"):
            fim_prompt(coder.vocab, "ab", "cd", **more)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prefix": None}, "prefix must be str, not NoneType"),
        ({"suffix": b"x"}, "suffix must be str, not bytes"),
        ({"files": ["x"]}, r"files\[0\] is neither"),
        ({"files": {"x": b"y"}}, r"files\['x'\] must be str, not bytes"),
        ({"file_name": 5}, "file_name must be str, not int"),
        ({"files": None}, "files must be several texts by name, not NoneType"),
        ({"prefix": "a\ud83d"}, "surrogates not allowed, in prefix$"),
        ({"suffix": "\ude00b"}, "surrogates not allowed, in suffix$"),
        ({"files": {"x": "\ude00b"}}, r"surrogates not allowed, in files\['x'\]$"),
    ],
)
def test_arguments_by_name(project: og.Model, arguments: dict[str, Any], text: str) -> None:
    """A wrong text is told by the argument's name."""
    with pytest.raises((TypeError, UnicodeError), match=text):
        fim_prompt(project.vocab, **{"prefix": "a", "suffix": "b", **arguments})


def test_an_engine_fills_in(project: og.Model) -> None:
    """Engine.infill gives what infill gives, and computes only what has changed since the request before."""
    files = {"x": "efgh" * 40}
    likely = dict.fromkeys(range(7, 33), 30.0)
    sampling = og.SamplingParams(samplers=("top_k", "top_p", "infill"), temperature=0, logit_bias=likely)
    expected = og.infill(project, "ab", "cd", files=files, sampling=sampling, max_tokens=8, n_threads=1)
    with og.Engine(project, n_seq_max=2, n_ctx=1024, n_threads=1, type_k="f32", type_v="f32") as engine:
        first = engine.infill("ab", "cd", files=files, sampling=sampling, max_tokens=8).result()
        assert first.text == expected.text
        assert len(first.text) == 8
        again = engine.infill("abc", "cd", files=files, sampling=sampling, max_tokens=8).result()
        assert again.usage.cached_tokens >= again.usage.prompt_tokens - len("c" + "cd") - 3
        options: Any = {"files": files, "sampling": sampling, "stop": first.text[0]}
        several = engine.infill("ab", "cd", max_tokens=2, n=2, **options).result()
        assert [answer.text for answer in several.answers] == ["", ""]
        with pytest.raises(TypeError, match=r"Engine.infill\(\) takes no argument 'temprature'"):
            engine.infill("ab", "cd", temprature=1)  # type: ignore[call-arg]


def test_an_engine_samples_as_infill_does(project: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SamplingParams the chain is that of infill, and single options replace its values."""
    seen: list[og.SamplingParams] = []
    chain = og.SamplingParams.chain

    def record(params: og.SamplingParams, vocab: og.Vocab) -> og.SamplerChain:
        seen.append(params)
        return chain(params, vocab)

    monkeypatch.setattr(og.SamplingParams, "chain", record)
    with og.Engine(project, n_seq_max=1, n_ctx=256) as engine:
        engine.infill("ab", "cd", max_tokens=1, temperature=0.5).result()
    assert [(params.samplers, params.temperature) for params in seen] == [(("top_k", "top_p", "infill"), 0.5)]

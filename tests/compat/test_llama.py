"""Llama: completions on the Engine, tokens one by one on a context of its own, vectors, and its life."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import minilm
from helpers.adapters import write_lora
from helpers.engines import logprobs_of
from helpers.twin import LETTERS, Weights, write_tiny_llama
from offgrid_llama.compat import llama_cpp
from offgrid_llama.compat.llama_cpp import Llama
from offgrid_llama.compat.llama_cpp import llama_cpp as raw
from offgrid_llama.compat.llama_cpp.completing import parallel
from offgrid_llama.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding

PROMPT = "abcabcabd"
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny llama whose tokens are letters."""
    path = tmp_path_factory.mktemp("llama") / "letters.gguf"
    write_tiny_llama(path, more=LETTERS)
    return str(path)


@pytest.fixture(scope="module")
def llama(path: str) -> Iterator[Llama]:
    """One that keeps the logits of all tokens."""
    llama = Llama(path, n_ctx=256, n_batch=32, logits_all=True, type_k=0, type_v=0, verbose=False)
    yield llama
    llama.close()


def made(path: str, **options: Any) -> closing[Llama]:
    """Return another one, for a ``with`` block."""
    return closing(Llama(path, **{"n_ctx": 256, "n_batch": 32, "type_k": 0, "type_v": 0, "verbose": False, **options}))


def of(reply: Any) -> tuple[str, str]:
    """Return the text of a completion, and why it ends."""
    choice = reply["choices"][0]
    return choice["text"], choice["finish_reason"]


def text_of_chunks(chunks: Any) -> tuple[str, str]:
    """Return the text of a stream, and why it ends, which only the last chunk says."""
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def test_all_ways_write_the_same(llama: Llama) -> None:
    """Whole and streamed, from text and from tokens, with logprobs, with criteria and token by token: the same text."""
    reply: Any = llama(PROMPT, **GREEDY)
    tokens = llama.tokenize(PROMPT.encode(), special=True)
    assert reply["usage"] == {
        "prompt_tokens": len(tokens), "completion_tokens": 12, "total_tokens": len(tokens) + 12,
    }  # fmt: skip
    text, reason = of(reply)
    assert (len(text), reason) == (12, "length")
    never = llama_cpp.StoppingCriteriaList([lambda _ids, _logits: False])
    for prompt in (PROMPT, tokens):
        for more in ({}, {"logprobs": 1}, {"stopping_criteria": never}, {"stopping_criteria": never, "logprobs": 1}):
            assert of(llama(prompt, **GREEDY, **more)) == (text, reason)
            assert text_of_chunks(llama(prompt, **GREEDY, **more, stream=True)) == (text, reason)
    written = list(itertools.islice(llama.generate(tokens, temp=0.0), 12))
    assert llama.detokenize(written).decode() == text


def test_ends(llama: Llama) -> None:
    """A stop string, a criterion and the length of the context end a text."""
    text, _ = of(llama(PROMPT, **GREEDY))
    stop = text[4:6]
    ended = text[: text.index(stop)], "stop"
    assert of(llama(PROMPT, stop=[stop], **GREEDY)) == of(llama(PROMPT, stop=stop, **GREEDY)) == ended
    assert text_of_chunks(llama(PROMPT, stop=["zz", stop], stream=True, **GREEDY)) == ended
    n = len(llama.tokenize(PROMPT.encode())) + 3
    enough = llama_cpp.StoppingCriteriaList([lambda ids, _logits: len(ids) >= n])
    assert of(llama(PROMPT, stopping_criteria=enough, **GREEDY)) == (text[:3], "stop")
    for max_tokens in (None, 0, -1, 10_000):
        reply: Any = llama(PROMPT, max_tokens=max_tokens, temperature=0.0, logit_bias={llama.token_eos(): -1000.0})
        assert (reply["usage"]["total_tokens"], of(reply)[1]) == (llama.n_ctx(), "length")
    with pytest.raises(ValueError, match=r"Requested tokens \(\d+\) exceed context window of 256"):
        llama("a" * 300, **GREEDY)


@pytest.mark.parametrize("own", [False, True])
def test_logprobs(llama: Llama, own: bool) -> None:
    """They are those of the token's own place, with echo of the prompt's tokens, too; the first has none."""
    criteria = llama_cpp.StoppingCriteriaList([lambda _ids, _logits: False]) if own else None
    tokens = llama.tokenize(PROMPT.encode())
    reply: Any = llama(PROMPT, logprobs=3, echo=True, stopping_criteria=criteria, **GREEDY)
    told, text = reply["choices"][0]["logprobs"], reply["choices"][0]["text"]
    assert "".join(told["tokens"]) == text
    assert told["text_offset"] == list(itertools.accumulate(map(len, told["tokens"][:-1]), initial=0))
    whole = llama.tokenize(text.encode())
    rows = logprobs_of(llama._weights, whole)
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    begin = len(tokens) - len(PROMPT)  # without a BOS
    for at, row in enumerate(rows[begin:-1], 1):
        best = max(told["top_logprobs"][at].values())
        assert told["token_logprobs"][at] == pytest.approx(row[whole[begin + at]], abs=0.01)
        assert best == pytest.approx(row.max(), abs=0.01)
        assert len(told["top_logprobs"][at]) in (3, 4)
    alone: Any = llama(PROMPT, logprobs=3, stopping_criteria=criteria, **GREEDY)
    answer = alone["choices"][0]["logprobs"]
    assert answer["text_offset"] == told["text_offset"][len(PROMPT) :]
    assert answer["token_logprobs"] == pytest.approx(told["token_logprobs"][len(PROMPT) :], abs=0.01)


def test_logprobs_take_logits_all(path: str) -> None:
    with made(path) as plain, pytest.raises(ValueError, match="logits_all=False"):
        plain(PROMPT, logprobs=1)


def test_functions_and_biases(llama: Llama) -> None:
    """Functions change the logits, biases add to them, a grammar limits the text, alone and with criteria."""
    (letter,) = llama.tokenize(b"q", add_bos=False)[-1:]

    def louder(ids: Any, logits: Any) -> Any:
        assert ids.dtype == np.intc
        changed = logits.copy()
        changed[letter] += 1000
        return changed

    processors = llama_cpp.LogitsProcessorList([louder])
    never = llama_cpp.StoppingCriteriaList([lambda _ids, _logits: False])
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "xy" | "zz"', verbose=False)
    for criteria in (None, never):
        for how in (
            {"logits_processor": processors},
            {"logit_bias": {letter: 1000.0}},
            {"logit_bias": {str(letter): 1e3}},
        ):
            assert of(llama(PROMPT, **GREEDY, **how, stopping_criteria=criteria))[0] == "q" * 12
        assert of(llama(PROMPT, **GREEDY, grammar=grammar, stopping_criteria=criteria))[0] in ("xy", "zz")


def test_values_that_are_off(llama: Llama) -> None:
    """Values that llama.cpp takes for off are taken; a temperature below 0 draws from all tokens."""
    greedy = of(llama(PROMPT, **GREEDY))
    assert of(llama(PROMPT, top_k=-1, top_p=2.0, min_p=-1.0, typical_p=1.5, tfs_z=0.1, **GREEDY)) == greedy
    drawn = {of(llama(PROMPT, max_tokens=12, temperature=-1.0, top_k=1, seed=seed))[0] for seed in range(4)}
    assert len(drawn) > 1
    for mode in (1, 2):
        assert of(llama(PROMPT, max_tokens=4, mirostat_mode=mode))[1] == "length"


def test_seeds(path: str) -> None:
    """A seed decides what is drawn; without one each call draws another, in the same order in each Llama of one seed."""
    texts = []
    for _ in range(2):
        with made(path, seed=7) as llama:
            texts.append([of(llama(PROMPT, max_tokens=12, temperature=2.0))[0] for _ in range(3)])
            one, other = (of(llama(PROMPT, max_tokens=12, temperature=2.0, seed=seed))[0] for seed in (1, 2))
            assert one != other
            assert one == of(llama(PROMPT, max_tokens=12, temperature=2.0, seed=1))[0]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_eight_threads(llama: Llama) -> None:
    """Completions of several threads run at once, and each is the one that it is alone."""
    prompts = [PROMPT[i:] + "xyz"[: i % 3] for i in range(8)]
    alone = [of(llama(prompt, **GREEDY)) for prompt in prompts]
    together: list[Any] = [None] * 8

    def run(i: int) -> None:
        together[i] = of(llama(prompts[i], **GREEDY))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_conversations_are_answered_by_the_engine(tmp_path: Path) -> None:
    """The model's own template ends an answer where the model does, which needs no context of the Llama's own."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_tiny_llama(tmp_path / "chat.gguf", more={**LETTERS, "tokenizer.chat_template": template})
    with made(str(tmp_path / "chat.gguf")) as llama:
        reply: Any = llama.create_chat_completion([{"role": "user", "content": PROMPT}], temperature=0.0, max_tokens=12)
        assert reply["choices"][0]["message"]["content"]
        assert sum(llama._engine.stats().finished.values()) == 1
        assert "_context" not in vars(llama)


@pytest.mark.parametrize(
    ("n_ctx", "n_head_kv", "n"), [(512, 8, 8), (4096, 2, 4), (4096, 8, 2), (512, 32, 4), (65_536, 32, 1)]
)
def test_how_many_at_once(n_ctx: int, n_head_kv: int, n: int) -> None:
    """As many as share a KV cache of 16,384 positions and of 1 GiB, from one up to eight."""
    model: Any = SimpleNamespace(n_embd=4096, n_head=32, n_head_kv=n_head_kv, n_layer=32)
    assert parallel(model, n_ctx) == n


def test_a_stream_that_is_dropped(llama: Llama) -> None:
    """It is cancelled, and the next one runs."""
    stream: Any = llama(PROMPT, max_tokens=200, temperature=0.0, stream=True)
    next(stream)
    stream.close()
    assert of(llama(PROMPT, **GREEDY))[1] == "length"
    assert llama._engine.stats().n_running == 0


def test_token_by_token(llama: Llama) -> None:
    """Tokens are computed behind the text so far, which an Engine's answer belongs to, and which n_tokens cuts."""
    tokens = llama.tokenize(PROMPT.encode())
    llama.reset()
    llama.eval(tokens)
    assert (llama.n_tokens, list(llama.eval_tokens)) == (len(tokens), tokens)
    assert llama.scores.shape == (llama.n_ctx(), llama.n_vocab())
    assert len(llama.eval_logits) == len(tokens)
    best = [int(row.argmax()) for row in llama._scores]
    assert [llama.sample(temp=0.0, idx=i) for i in range(len(tokens))] == best
    assert llama.sample(temp=0.0) == best[-1]
    llama.n_tokens -= 3
    assert llama.sample(temp=0.0) == best[-4]
    reply: Any = llama(PROMPT, **GREEDY)
    whole = tokens + llama.tokenize(reply["choices"][0]["text"].encode(), add_bos=False)
    assert llama._input_ids.tolist() == whole[:-1]  # the last one was drawn, and not computed
    assert llama.sample(temp=0.0) == whole[-1]
    with pytest.raises(ValueError, match="exceed context window of 256"):
        llama.eval([1] * 256)
    llama.reset()
    with pytest.raises(AssertionError, match="there is no text yet"):
        llama.sample()


def test_generate(llama: Llama) -> None:
    """What a text begins with already is kept; tokens can be sent; without reset the text goes on."""
    tokens = llama.tokenize(PROMPT.encode())
    fresh = list(itertools.islice(llama.generate(tokens, temp=0.0), 8))
    llama.reset()
    llama.eval(tokens)
    assert list(itertools.islice(llama.generate(tokens, temp=0.0), 8)) == fresh
    assert llama.n_tokens == len(tokens) + 7
    longer = [*tokens, *fresh[:2], fresh[0]]
    kept = list(itertools.islice(llama.generate(longer, temp=0.0), 4))
    llama.reset()
    assert list(itertools.islice(llama.generate(longer, temp=0.0), 4)) == kept
    llama.reset()
    llama.eval(tokens[:-2])
    assert list(itertools.islice(llama.generate(tokens[-2:], temp=0.0, reset=False), 8)) == fresh
    sending = llama.generate(tokens, temp=0.0)
    assert next(sending) == fresh[0]
    sending.send([fresh[1], fresh[2]])
    assert llama._input_ids.tolist() == [*tokens, *fresh[:3]]
    sending.close()
    assert llama._chooser is None


def test_guesses_change_nothing(path: str, llama: Llama) -> None:
    """A draft model's right and wrong guesses leave the tokens as they are."""
    tokens = llama.tokenize(PROMPT.encode())
    alone = list(itertools.islice(llama.generate(tokens, temp=0.0), 40))
    with made(path, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4)) as guessing:
        assert list(itertools.islice(guessing.generate(tokens, temp=0.0), 40)) == alone


def test_states(path: str, llama: Llama) -> None:
    """A state gives another Llama the text, its computation and the seed."""
    tokens = llama.tokenize(PROMPT.encode())
    fresh = list(itertools.islice(llama.generate(tokens, temp=0.0), 8))
    llama.reset()
    llama.eval(tokens)
    llama.set_seed(11)
    state = llama.save_state()
    assert state.llama_state_size == len(state.llama_state)
    with made(path, logits_all=True) as other:
        other.eval(tokens[:3][::-1])
        other.load_state(state)
        assert (other._input_ids.tolist(), other._seed) == (tokens, 11)
        np.testing.assert_array_equal(other._scores, llama._scores)
        assert list(itertools.islice(other.generate(tokens, temp=0.0), 8)) == fresh


def test_caches(path: str) -> None:
    """A cache keeps the state of each text; one that begins as the prompt does is loaded."""
    with made(path) as llama:
        fresh = of(llama(PROMPT, **GREEDY))
        loaded: list[int] = []
        load_state = llama.load_state

        def counted(state: Any) -> None:
            loaded.append(state.n_tokens)
            load_state(state)

        llama.load_state = counted  # type: ignore[method-assign]
        llama.set_cache(llama_cpp.LlamaRAMCache())
        assert of(llama(PROMPT, **GREEDY)) == fresh
        assert of(llama("zzz", **GREEDY))[1] == "length"
        assert not loaded
        assert of(llama(PROMPT, **GREEDY)) == fresh
        assert len(loaded) == 1


def test_an_adapter(path: str, weights: Weights, tmp_path: Path) -> None:
    """It changes what is written, by the Engine and token by token; a scale of 0 leaves all as it is."""
    write_lora(tmp_path / "lora.gguf", weights, 1)
    tokens_of: dict[float, Any] = {}
    for scale in (0.0, 8.0):
        with made(path, lora_path=str(tmp_path / "lora.gguf"), lora_scale=scale, logits_all=True) as llama:
            tokens = llama.tokenize(PROMPT.encode())
            llama.eval(tokens)
            tokens_of[scale] = llama._scores.copy()
            assert of(llama(PROMPT, max_tokens=1, temperature=0.0))[0].encode() == llama.detokenize(
                [int(tokens_of[scale][-1].argmax())]
            )
    with made(path, logits_all=True) as llama:
        llama.eval(tokens)
        np.testing.assert_allclose(llama._scores, tokens_of[0.0], atol=1e-3)
    assert np.abs(tokens_of[8.0] - tokens_of[0.0]).max() > 0.01


def test_vectors() -> None:
    """Vectors as lists, of one text and several, with their number of tokens; without ``embedding`` there are none."""
    with closing(Llama(str(minilm.path()), embedding=True, verbose=False)) as llama:
        one, several = llama.embed("Hello World"), llama.embed(["Hello World", "a"])
        assert np.asarray(one).shape == (384,)
        np.testing.assert_allclose(several[0], one, atol=1e-3)
        assert np.linalg.norm(llama.embed("a", normalize=True)) == pytest.approx(1)
        reply = llama.create_embedding(["Hello World", "a"], model="mine")
        assert [each["index"] for each in reply["data"]] == [0, 1]
        n = sum(len(llama.tokenize(text.encode())) for text in ("Hello World", "a"))
        assert (reply["model"], reply["usage"]) == ("mine", {"prompt_tokens": n, "total_tokens": n})
        assert len(llama.embed("word " * 700)) == 384
        with pytest.raises(ValueError, match=r"Requested tokens \(702\) exceed batch size of 512"):
            llama.embed("word " * 700, truncate=False)


def test_no_vectors(path: str, llama: Llama) -> None:
    """They take ``embedding=True``; a model that pools nothing has one for each token."""
    with pytest.raises(RuntimeError, match="embedding=True"):
        llama.embed("a")
    with made(path, embedding=True) as plain:
        found, n_tokens = plain.embed("abc", return_count=True)
        assert np.asarray(found).shape == (n_tokens, plain.n_embd())


def test_its_life(path: str, tmp_path: Path) -> None:
    """It pickles as its arguments, closes once, and tells what it is; a file that is not there is a ValueError."""
    with made(path, n_ctx=300, last_n_tokens_size=5) as llama:
        with closing(pickle.loads(pickle.dumps(llama))) as other:
            assert (other.n_ctx(), other.last_n_tokens_size) == (512, 5)
            assert of(other(PROMPT, **GREEDY)) == of(llama(PROMPT, **GREEDY))
        assert raw.llama_n_ctx(llama.ctx) == llama.context_params.n_ctx == llama.n_ctx() == 512
        assert raw.llama_model_n_embd(llama.model) == llama.n_embd()
        assert llama._model.metadata() == llama.metadata
        assert llama.tokenizer().decode(llama.tokenizer().encode("abc")) == "abc"
        assert llama.token_bos() == llama._weights.vocab.bos
    llama.close()
    with pytest.raises(Exception, match="closed"):
        llama(PROMPT)
    with pytest.raises(ValueError, match="Model path does not exist"):
        Llama(str(tmp_path / "nowhere.gguf"))
    with pytest.raises(ValueError, match="yarn_beta_fast must be"):
        made(path, yarn_beta_fast=3.0)
    with pytest.raises(ValueError, match="type_k must be"):
        made(path, type_k=77)

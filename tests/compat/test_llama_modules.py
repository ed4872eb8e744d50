"""Types, signatures, prompt lookup and tokenizers, as llama-cpp-python 0.3.36 has them."""

from __future__ import annotations

import gc
import importlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import offgrid_llama as og
from helpers import llama_cpp_facts as facts
from offgrid_llama.compat.llama_cpp import llama_callbacks, llama_speculative, llama_tokenizer, llama_types

THEIRS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "llama_cpp_chat_formats.json").read_text("utf-8")
)
OURS = types.SimpleNamespace(
    **{name: importlib.import_module(f"offgrid_llama.compat.llama_cpp.{name}") for name in facts.CALLABLES}
)


def test_types_are_the_same() -> None:
    """All names, the fields of each, which of them are required, and their types."""
    assert json.loads(json.dumps(facts.type_facts(llama_types))) == THEIRS["types"]


def test_pydantic_takes_the_types() -> None:
    """Servers check requests and answers with them."""
    chunk = {"id": "1", "model": "m", "object": "chat.completion.chunk", "created": 1, "choices": []}
    assert TypeAdapter(llama_types.ChatCompletionChunk).validate_python(chunk) == chunk
    messages = TypeAdapter(list[llama_types.ChatCompletionRequestMessage])
    assert messages.validate_python([{"role": "user", "content": "x"}])
    with pytest.raises(ValidationError):
        messages.validate_python([{"role": "nobody", "content": "x"}])


def test_signatures_are_the_same() -> None:
    """The names of parameters and their defaults, of public functions, classes and handlers."""
    assert json.loads(json.dumps(facts.signature_facts(OURS))) == THEIRS["signatures"]


def test_guesses_are_the_same() -> None:
    """Those of prompt lookup after random tokens."""
    assert json.loads(json.dumps(facts.lookup_facts(llama_speculative))) == THEIRS["lookup"]


def test_a_draft_model_is_called_with_tokens() -> None:
    """Prompt lookup is one, and takes keywords that it does not know."""
    draft = llama_speculative.LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=2)
    assert draft(np.array([1, 2, 3, 4, 1, 2], np.intc), temperature=1).tolist() == [3, 4]
    assert isinstance(draft, llama_speculative.LlamaDraftModel)


def test_lists_of_callbacks() -> None:
    """Processors get what the one before has returned; any criterion ends the text, and all are asked."""
    asked: list[int] = []
    processors = llama_callbacks.LogitsProcessorList([lambda ids, row: row + 1, lambda ids, row: row * len(ids)])
    assert processors(np.array([1, 2], np.intc), np.ones(2, np.single)).tolist() == [4, 4]
    criteria = llama_callbacks.StoppingCriteriaList(
        [lambda ids, row: not asked.append(1), lambda ids, row: bool(asked.append(2))]  # type: ignore[func-returns-value]
    )
    assert criteria(np.array([1], np.intc), np.ones(2, np.single))
    assert asked == [1, 2]


def test_the_tokenizer_of_a_file(smollm2_path: Path) -> None:
    """It needs no weights, and gives what the vocabulary gives."""
    tokenizer = llama_tokenizer.LlamaTokenizer.from_ggml_file(str(smollm2_path))
    tokens = tokenizer.encode("Grüße <|im_end|>", add_bos=False)
    with og.Model(smollm2_path, vocab_only=True) as model:
        assert tokens == model.vocab.tokenize("Grüße <|im_end|>", add_special=False, parse_special=True)
        plain = model.vocab.tokenize("Grüße <|im_end|>", add_special=False)
    assert tokenizer.encode("Grüße <|im_end|>", add_bos=False, special=False) == plain
    assert tokenizer.decode(tokens) == "Grüße "
    assert tokenizer.detokenize(tokens, special=True) == "Grüße <|im_end|>".encode()
    assert tokenizer.tokenize(b"a") == tokenizer.encode("a")


def test_the_model_of_a_file_closes_with_its_tokenizer(smollm2_path: Path) -> None:
    """No model is left open, which would warn."""
    tokenizer = llama_tokenizer.LlamaTokenizer.from_ggml_file(str(smollm2_path))
    model = tokenizer._model._model  # type: ignore[attr-defined]
    del tokenizer
    gc.collect()
    assert model.closed


def test_the_space_before_a_text_is_bos_own(gemma_path: Path) -> None:
    """Tokens that begin with BOS have the text without the space that the tokenizer has put behind BOS."""
    with og.Model(gemma_path, vocab_only=True) as model:
        space = model.vocab.tokenize(" a", add_special=False)
        bos = model.vocab.bos
    assert bos is not None
    tokenizer = llama_tokenizer.LlamaTokenizer.from_ggml_file(str(gemma_path))
    assert tokenizer.detokenize(space) == b" a"
    assert tokenizer.detokenize([bos, *space]) == b"a"
    assert tokenizer.detokenize([]) == b""


class Letters:
    """A tokenizer in transformers' manner: a letter is a token, and 0 begins a text."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [0] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(token) if token else "" if skip_special_tokens else "<s>" for token in tokens)


def test_tokenizers_of_transformers() -> None:
    """They take and give bytes; tokens before the first one are not in the text."""
    tokenizer = llama_tokenizer.LlamaHFTokenizer(Letters())
    assert tokenizer.tokenize("aé".encode()) == [0, 97, 233]
    assert tokenizer.tokenize(b"a\xff", special=False) == [97]
    assert tokenizer.detokenize([0, 97, 233], special=True) == "<s>aé".encode()
    assert tokenizer.detokenize([98, 99], prev_tokens=[0, 97]) == b"bc"


def test_transformers_is_needed_for_repositories(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        llama_tokenizer.LlamaHFTokenizer.from_pretrained("org/name")

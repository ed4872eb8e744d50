"""Tokenizers: a model's own, and those of transformers. They take and give bytes."""

from __future__ import annotations

import abc
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from offgrid_llama.model.model import Model

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]


class BaseLlamaTokenizer(abc.ABC):
    """Turns text into tokens, and back."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: UTF-8.
            add_bos: begin with the token that begins a sequence.
            special: read ``<s>`` and the like as control tokens.
        """

    @abc.abstractmethod
    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Return the text of tokens, which need not be whole characters.

        Args:
            tokens: the tokens.
            prev_tokens: those before them; they have no text in the result, but may change that of the others.
            special: write control tokens as their text; by default they have none.
        """


class _Tokenizing(Protocol):
    """The part of a model that a tokenizer uses."""

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]: ...

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes: ...


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a model.

    Args:
        llama: the ``Llama`` whose model it is.
    """

    def __init__(self, llama: Any) -> None:
        self._model: _Tokenizing = llama._model

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text."""
        return self._model.tokenize(text, add_bos=add_bos, special=special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Return the text of tokens; ``prev_tokens`` change nothing in it."""
        return self._model.detokenize(tokens, special=special)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text; surrogates are left out."""
        return self.tokenize(text.encode("utf-8", errors="ignore"), add_bos=add_bos, special=special)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 are left out."""
        return self.detokenize(tokens).decode("utf-8", errors="ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> Self:
        """Return the tokenizer of a GGUF file, of which nothing but the vocabulary is loaded.

        Raises as ``offgrid_llama.Model`` does.
        """
        from offgrid_llama.model.model import Model

        tokenizer = cls.__new__(cls)
        tokenizer._model = _VocabOnly(Model(path, vocab_only=True))
        return tokenizer


class _VocabOnly:
    """A model without weights, as a tokenizer uses it. The model closes with the tokenizer."""

    def __init__(self, model: Model) -> None:
        self._model = model
        weakref.finalize(self, model.close).atexit = False  # then all models are closed

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return self._model.vocab.tokenize(text, add_special=add_bos, parse_special=special)

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        vocab = self._model.vocab
        text = b"".join(vocab.piece(token, special=special) for token in tokens)
        # Tokenizers that put a space before the text put it behind BOS.
        return text[1:] if tokens and tokens[0] == vocab.bos and text.startswith(b" ") else text


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of transformers.

    Args:
        hf_tokenizer: the tokenizer, or any object with its ``encode`` and ``decode``.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Return the tokens of a text. ``special`` adds those that begin and end one; ``add_bos`` changes nothing."""
        found: list[int] = self.hf_tokenizer.encode(text.decode("utf-8", errors="ignore"), add_special_tokens=special)
        return found

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """Return the text that ``tokens`` add to that of ``prev_tokens``."""
        if prev_tokens is None:
            return self._text(tokens, special)
        return self._text(prev_tokens + tokens, special)[len(self._text(prev_tokens, special)) :]

    def _text(self, tokens: list[int], special: bool) -> bytes:
        text: str = self.hf_tokenizer.decode(tokens, skip_special_tokens=not special)
        return text.encode("utf-8", errors="ignore")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> Self:
        """Return the tokenizer of a folder or of a repository, as transformers loads it.

        Raises ImportError where transformers is not installed, and what transformers raises.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError("tokenizers of repositories need transformers: pip install transformers") from error
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))

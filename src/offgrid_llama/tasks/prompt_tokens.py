"""A prompt as a caller gives it, text or token ids, as checked token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offgrid_llama.native.kinds import listed, text_of_argument

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

__all__ = ["prompt_tokens"]


def prompt_tokens(
    vocab: Vocab, prompt: str | bytes | Sequence[int], *, name: str = "prompt", parse_special: bool = False
) -> list[int]:
    """Return the token ids of a prompt, at least one.

    Args:
        vocab: the vocabulary.
        prompt: text (str, or bytes of UTF-8), or token ids as they are.
        name: the argument's name in errors.
        parse_special: read ``<|im_start|>`` and the like in a text as control tokens.

    Raises:
        ValueError: the prompt gives no tokens, or has a token id that the vocabulary lacks.
        TypeError, UnicodeError, TokenizeError: as ``Vocab.tokenize``.
    """
    if isinstance(prompt, (str, bytes)):
        with text_of_argument(name):
            tokens = vocab.tokenize(prompt, parse_special=parse_special)
    else:
        ids = listed(name, prompt, "token ids, or a text")
        tokens = [vocab.check_token(f"{name}[{i}]", token) for i, token in enumerate(ids)]
    if not tokens:
        raise ValueError(f"{name} gives no tokens")
    return tokens

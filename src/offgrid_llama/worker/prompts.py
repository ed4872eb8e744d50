"""Prompts of requests, texts and token ids in turn, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from offgrid_llama.chat.chat_format import Prompt
from offgrid_llama.media.projector import Projector
from offgrid_llama.model.vocab import Vocab
from offgrid_llama.tasks.infill import fim_prompt
from offgrid_llama.tasks.prompt_tokens import prompt_tokens

from .failures import RequestError
from .generation import Texts

__all__ = ["mixed", "n_prompt_tokens", "tokens_of"]


def tokens_of(prompt: str | Sequence[int | str], asked: Texts, vocab: Vocab) -> list[int]:
    """Return the token ids of one prompt of a request.

    Raises ValueError, TypeError and TokenizeError as ``prompt_tokens`` and ``fim_prompt`` do.
    """
    if asked.suffix is not None:
        if not isinstance(prompt, str):
            raise ValueError("prompt must be text, not token ids, in a request with a suffix")
        tokens = fim_prompt(vocab, prompt, asked.suffix, files=asked.files)
        return [*tokens, *vocab.tokenize(asked.middle, add_special=False)] if asked.middle else tokens
    if not isinstance(prompt, str) and any(isinstance(each, str) for each in prompt):
        prompt = mixed(prompt, vocab, parse_special=asked.parse_special)
    return prompt_tokens(vocab, prompt, parse_special=asked.parse_special)  # type: ignore[arg-type]


def mixed(prompt: Sequence[int | str], vocab: Vocab, *, parse_special: bool = False) -> list[int]:
    """Return token ids and texts in turn as token ids. Only a text at the beginning gets the tokens of a beginning."""
    tokens: list[int] = []
    for at, part in enumerate(prompt):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, add_special=at == 0, parse_special=parse_special)
        else:
            tokens.append(part)
    return tokens


def n_prompt_tokens(prompt: Prompt, projector: Projector | None) -> int:
    """Return how many tokens the prompt of a conversation takes, with its pictures and sounds, which are not decoded.

    Raises RequestError where there are some, and the model has no projector; and as ``Projector.tokenize`` does.
    """
    if len(prompt.token_ids) == len(prompt.tokens):
        return len(prompt.tokens)
    if projector is None:
        raise RequestError("this model takes no pictures and no sound", param="messages")
    with projector.tokenize(prompt.tokens, decode=False) as parts:
        return parts.n_tokens

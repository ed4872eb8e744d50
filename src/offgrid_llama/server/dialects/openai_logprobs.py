"""Logprobs in OpenAI's shapes: those of chat completions, and those of completions; and of prompts in vLLM's."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from offgrid_llama.worker.frames import PromptLogprob, TokenLogprob

__all__ = ["TextLogprobs", "chat_logprobs", "prompt_logprobs"]

LOWEST_LOGPROB = -9999.0
"""OpenAI's logprob of what is next to impossible; JSON has no infinity."""


def chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Return the logprobs of an answer's tokens as chat completions have them."""
    if logprobs is None:
        return None

    def one(piece: bytes, logprob: float | None) -> dict[str, Any]:
        return {"token": _text(piece), "logprob": _number(logprob), "bytes": list(piece)}

    content = [
        {**one(each.piece, each.logprob), "top_logprobs": [one(piece, logprob) for piece, logprob in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(logprobs: Sequence[PromptLogprob]) -> list[dict[str, Any] | None]:
    """Return the logprobs of a prompt's tokens as vLLM tells them: at each place by token id, the token's own first."""
    return [None if each.logprob is None else _by_id(each) for each in logprobs]


def _by_id(found: PromptLogprob) -> dict[str, Any]:
    own, *top = found.ids
    first = {"logprob": _number(found.logprob), "rank": found.rank, "decoded_token": _text(found.piece)}
    ranked = {
        str(token): {"logprob": _number(logprob), "rank": rank, "decoded_token": _text(piece)}
        for rank, (token, (piece, logprob)) in enumerate(zip(top, found.top, strict=True), 1)
    }
    return {str(own): first, **ranked}


class TextLogprobs:
    """The logprobs of one choice of a completion, part by part, with the places of its tokens in the text, in characters.

    A token within a character is where the character is.
    """

    def __init__(self) -> None:
        self._n_characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(
        self, logprobs: Sequence[TokenLogprob] | None, prompt: Sequence[PromptLogprob] | None = None
    ) -> dict[str, Any] | None:
        """Return the logprobs of the next tokens, with those of the prompt before them, if the text begins with it."""
        if logprobs is None and prompt is None:
            return None
        places = []
        if prompt:
            places = self._places(each.piece for each in prompt)
            self._n_characters += len(self._decoder.decode(b"", final=True))  # the answer is a text of its own
        told: list[TokenLogprob | PromptLogprob] = [*(prompt or ()), *(logprobs or ())]
        places += self._places(each.piece for each in logprobs or ())
        return {
            "tokens": [_text(each.piece) for each in told],
            "token_logprobs": [_number(each.logprob) for each in told],
            "top_logprobs": [_top(each) for each in told], "text_offset": places,
        }  # fmt: skip

    def _places(self, pieces: Iterable[bytes]) -> list[int]:
        places = []
        for piece in pieces:
            places.append(self._n_characters)
            self._n_characters += len(self._decoder.decode(piece))
        return places


def _top(found: TokenLogprob | PromptLogprob) -> dict[str, float] | None:
    """Return the most probable tokens, and the token itself, by their texts; of two with the same text the more probable."""
    if found.logprob is None:
        return None
    top: dict[str, float] = {}
    for piece, logprob in [*found.top, (found.piece, found.logprob)]:
        top.setdefault(_text(piece), max(logprob, LOWEST_LOGPROB))
    return top


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)

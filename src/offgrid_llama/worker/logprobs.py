"""Logprobs of tokens, as the engine tells them, as frames: those of answers, and those of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .failures import RequestError
from .frames import PromptLogprob, TokenLogprob

if TYPE_CHECKING:
    from offgrid_llama.engine import Answer, Completion
    from offgrid_llama.model.vocab import Vocab

__all__ = ["best_answers", "check_told", "end_logprob", "prompt_logprobs", "token_logprobs"]

MAX_TOLD_LOGPROBS = 2**19
"""Logprobs of the prompts of one request, at most: those of their tokens, and of the most probable ones at each place. More
could fill the memory of the worker and of the server."""


def token_logprobs(
    vocab: Vocab, tokens: Sequence[int], logprobs: Sequence[tuple[float, list[tuple[int, float]]]]
) -> list[TokenLogprob]:
    """Return the logprobs of tokens of an answer."""
    return [
        _told(vocab, token, vocab.piece(token), own, top) for token, (own, top) in zip(tokens, logprobs, strict=False)
    ]


def best_answers(answers: Sequence[Answer], n: int) -> list[Answer]:
    """Return the ``n`` answers with the largest mean logprob of a token, the best first.

    The token with which the model has ended an answer counts. All answers have their logprobs.
    """
    return sorted(answers, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(answer: Answer) -> float:
    own = [logprob for logprob, _ in answer.logprobs]
    if answer.end_logprobs is not None:
        own.append(answer.end_logprobs[0])
    return sum(own) / len(own) if own else -math.inf


def end_logprob(vocab: Vocab, answer: Answer) -> list[TokenLogprob]:
    """Return the logprobs of the token with which the model has ended an answer; empty where something else has."""
    if answer.end is None or answer.end_logprobs is None:
        return []
    return [_told(vocab, answer.end, _shown(vocab, answer.end), *answer.end_logprobs)]


def prompt_logprobs(
    vocab: Vocab, tokens: Sequence[int], completion: Completion, echo: str | None
) -> list[PromptLogprob]:
    """Return the logprobs of the tokens of a prompt; the first has none.

    Args:
        vocab: the model's.
        tokens: of the prompt.
        completion: of it.
        echo: the text of the prompt that the client gets; the pieces of the tokens join to it. None is no text.
    """
    rest, ranks = completion.prompt_logprobs[1:], completion.prompt_ranks[1:]
    pieces = _pieces(vocab, tokens, echo)
    return [
        PromptLogprob(pieces[0], None, [], [tokens[0]]),
        *(
            _of_prompt(_told(vocab, token, piece, *each), rank)
            for token, piece, each, rank in zip(tokens[1:], pieces[1:], rest, ranks, strict=False)
            if each is not None
        ),
    ]


def check_told(n_tokens: int, n_top: int, param: str) -> None:
    """Raise RequestError where the prompts of a request have too many logprobs.

    Args:
        n_tokens: of all prompts, for each of their answers.
        n_top: how many most probable tokens are told at each place.
        param: the field of the request that asks for them.
    """
    n = n_tokens * (1 + n_top)
    if n > MAX_TOLD_LOGPROBS:
        raise RequestError(
            f"{param}: the prompts of a request can have {MAX_TOLD_LOGPROBS:,} logprobs, and these have {n:,}: ask for "
            "fewer of them, or give fewer prompts in a request",
            param=param,
        )  # fmt: skip


def _pieces(vocab: Vocab, tokens: Sequence[int], echo: str | None) -> list[bytes]:
    """Return the bytes of tokens, so that they join to a text.

    The tokens that a vocabulary adds at the beginning of a text have none then, nor has a space that it adds there.
    """
    shown = [_shown(vocab, token) for token in tokens]
    if echo is None or b"".join(shown).decode("utf-8", "replace") == echo:
        return shown
    plain = [vocab.piece(token) for token in tokens]
    if b"".join(plain).decode("utf-8", "replace") == " " + echo:
        at = next(i for i, piece in enumerate(plain) if piece)
        plain[at] = plain[at][1:]
    return plain


def _of_prompt(found: TokenLogprob, rank: int | None) -> PromptLogprob:
    return PromptLogprob(found.piece, found.logprob, found.top, found.ids, rank)


def _shown(vocab: Vocab, token: int) -> bytes:
    return vocab.piece(token) or vocab.piece(token, special=True)


def _told(
    vocab: Vocab, token: int, piece: bytes, own: float, top: Sequence[tuple[int, float]]
) -> TokenLogprob:  # fmt: skip
    return TokenLogprob(
        piece, own, [(_shown(vocab, other), each) for other, each in top], [token, *(other for other, _ in top)]
    )

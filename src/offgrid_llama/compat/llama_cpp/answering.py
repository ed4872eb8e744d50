"""Answers in OpenAI's shape, as llama-cpp-python writes them: of an Engine's completion, or of a Llama's own text."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from offgrid_llama.engine.completion import Piece
from offgrid_llama.engine.prompt_logprobs import TokenLogprobs
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.text.text_stream import TextStream

if TYPE_CHECKING:
    import numpy.typing as npt

    from offgrid_llama.media.image import Image
    from offgrid_llama.model.vocab import Vocab

__all__ = ["Answering", "OwnText", "Written", "told"]


class Written(Protocol):
    """A text that comes in pieces, such as an Engine's Completion."""

    @property
    def stop(self) -> str | None:
        """Return the stop string that has ended it."""

    def __iter__(self) -> Iterator[Piece]:
        """Yield them."""

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprobs | None]:
        """Return those of the prompt's tokens, where they are asked for."""


def told(logits: npt.NDArray[np.single], token: int, n_top: int) -> TokenLogprobs:
    """Return the logprob of a token and the ``n_top`` most probable ones, from the logits of its place."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:n_top]
    return float(logprobs[token]), [(int(each), float(logprobs[each])) for each in best]


@dataclass
class OwnText:
    """What ``generate`` writes, as a Completion: up to the token that ends it, a stop string, or ``max_tokens``.

    Attributes:
        tokens: the generator. vocab: of the model. stops, max_tokens: where it ends. prompt: the tokens before it.
        stop: the stop string that has ended it; None if none has.
        tell: returns the logprobs of the tokens from a place of the text on; None where they are not wanted.
    """

    tokens: Generator[int, Any, None]
    vocab: Vocab
    stops: Sequence[str]
    max_tokens: int
    prompt: Sequence[int]
    tell: Callable[[int, Sequence[int]], list[TokenLogprobs]] | None = None
    stop: str | None = None

    def __iter__(self) -> Iterator[Piece]:
        text, n, reason = TextStream(self.stops), 0, FinishReason.STOP
        try:
            for token in self.tokens:
                if self.vocab.is_eog(token):
                    break
                logprobs = () if self.tell is None else tuple(self.tell(len(self.prompt) + n, [token]))
                n += 1
                yield Piece(text.push(self.vocab.piece(token)), (token,), logprobs, 0)
                if text.stopped is not None:
                    break
                if n >= self.max_tokens:
                    reason = FinishReason.LENGTH
                    break
        finally:
            self.tokens.close()
        self.stop = text.stopped
        yield Piece(text.finish(), (), (), 0, reason)

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None]:
        """Those of the prompt's tokens; the first has none."""
        return [None, *(self.tell(1, self.prompt[1:]) if self.tell is not None else ())]


@dataclass
class Answering:
    """One completion that is being written.

    Attributes:
        vocab: of the model. model: the name that the answer tells.
        prompt: the prompt's text. tokens: its tokens.
        logprobs: how many of the most probable tokens are told at each place; None tells none.
        pictures: the prompt as tokens and pictures, where it has some. ``tokens`` has zeros in the place of each.
        first: tokens that count as the answer's, but were not generated: the BOS of an empty prompt.
        suffix: text that follows the answer.
        written: the tokens of the answer so far. reason: why it has ended.
    """

    vocab: Vocab
    model: str
    prompt: str
    tokens: list[int]
    logprobs: int | None = None
    pictures: Sequence[int | Image] = ()
    first: list[int] = field(default_factory=list)
    suffix: str = ""
    written: list[int] = field(default_factory=list)
    reason: FinishReason = FinishReason.STOP
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def asked(self) -> Sequence[int | Image]:
        """The prompt for an Engine."""
        return self.pictures or self.tokens

    def whole(self, pieces: Written, *, echo: bool) -> dict[str, Any]:
        """Return the response, which begins with the prompt if it shall ``echo``."""
        text = ""
        found: list[TokenLogprobs] = []
        for piece in self._followed(pieces):
            text += piece.text
            found += piece.logprobs
        if echo:
            text = self.prompt + text
        logprobs = None
        if self.logprobs is not None and echo:
            logprobs = self._echoed([*pieces.prompt_logprobs, *found])
        elif self.logprobs is not None:
            logprobs = self._told(self.written, found, len(self.prompt))
        n_prompt, n_written = len(self.tokens), len(self.first) + len(self.written)
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written}
        return {**self._chunk(text + self.suffix, logprobs, self.reason), "usage": usage}

    def chunks(self, pieces: Written) -> Iterator[dict[str, Any]]:
        """Yield the parts of the response as they come: one for each token where logprobs are wanted."""
        n_characters = len(self.prompt)
        for piece in self._followed(pieces):
            if self.logprobs is None:
                if piece.text:
                    yield self._chunk(piece.text)
                continue
            for token, each in zip(piece.tokens, piece.logprobs, strict=True):
                text = self._text(token)
                yield self._chunk(text, self._told([token], [each], n_characters))
                n_characters += len(text)
        yield self._chunk(self.suffix, None, self.reason)

    def _followed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self.written += piece.tokens
            if piece.finish_reason is None:
                yield piece
                continue
            self.reason = piece.finish_reason
            yield replace(piece, text=piece.text.removesuffix("\N{REPLACEMENT CHARACTER}"))  # of a cut character

    def _chunk(self, text: str, logprobs: Any = None, reason: FinishReason | None = None) -> dict[str, Any]:
        ended = None if reason is None else reason.value
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": ended}
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": [choice],
        }  # fmt: skip

    def _echoed(self, logprobs: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """Return the logprobs of the prompt, without its BOS, and of the answer; the first token has none."""
        begin = int(self.tokens[:1] == [self.vocab.bos])
        found = self._told(self.tokens[begin:] + self.written, logprobs[begin:], 0)
        for name in ("token_logprobs", "top_logprobs"):
            found[name][:1] = [None]
        return found

    def _told(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None], offset: int
    ) -> dict[str, list[Any]]:
        """Return logprobs as OpenAI's completions have them."""
        texts = [self._text(token) for token in tokens]
        top = [
            None if each is None else {**{self._text(token): logprob for token, logprob in each[1]}, text: each[0]}
            for text, each in zip(texts, logprobs, strict=True)
        ]
        return {
            "tokens": texts, "text_offset": list(accumulate(map(len, texts), initial=offset))[: len(texts)],
            "token_logprobs": [None if each is None else each[0] for each in logprobs], "top_logprobs": top,
        }  # fmt: skip

    def _text(self, token: int) -> str:
        return self.vocab.piece(token).decode("utf-8", errors="ignore")

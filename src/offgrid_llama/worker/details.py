"""The facts that a client can be told of an answer besides its text: its tokens, its times and its sampling parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any

from offgrid_llama.engine import Answer, Engine, FinishReason
from offgrid_llama.sampling.sampling_params import SamplingParams

from .frames import Chunk, Details, Measures
from .generation import Options

__all__ = ["Told", "measures"]


def measures(n_prompt: int, answer: Answer) -> Measures:
    """Return how fast an answer has come so far.

    Args:
        n_prompt: tokens of its prompt.
        answer: as it is now.
    """
    now, request = perf_counter(), answer.request
    started, first = answer.started, answer.first_token
    return Measures(
        n_prompt, request.n_cached, len(answer.tokens),
        0.0 if started is None else (first or now) - started, 0.0 if first is None else (answer.finished or now) - first,
        request.n_guessed, request.n_right,
    )  # fmt: skip


@dataclass(frozen=True)
class Told:
    """The facts that are told of all answers to one prompt.

    Attributes:
        engine: generates them.
        options: of the request.
        params: the sampling parameters that are used.
        prompt: its token ids.
    """

    engine: Engine
    options: Options
    params: SamplingParams
    prompt: Sequence[int]

    @property
    def is_silent(self) -> bool:
        """Whether the request wants its prompt computed, and no text."""
        return self.options.max_tokens == 0

    def of(self, chunk: Chunk, answer: Answer, tokens: Sequence[int]) -> Chunk:
        """Return a chunk of an answer with what the request asks for, given the ids of its tokens."""
        if self.is_silent:
            chunk.content, chunk.logprobs, chunk.n_tokens, tokens = "", None, 0, ()
            chunk.finish_reason = chunk.finish_reason and FinishReason.LENGTH.value
        if self.options.measures:
            chunk.token_ids, chunk.measures = list(tokens), measures(len(self.prompt), answer)
        if chunk.finish_reason is not None:
            chunk.details = self.details(answer)
        return chunk

    def details(self, answer: Answer) -> Details | None:
        """Return the details of an answer that has ended, if the request asks for them."""
        if not self.options.details:
            return None
        vocab, n = self.engine.model.vocab, len(self.prompt)
        tokens = [] if self.is_silent else answer.tokens
        n_ctx = self.engine.n_ctx_seq
        is_full = n + len(answer.tokens) >= n_ctx
        truncated = n + len(answer.tokens) > n_ctx or (is_full and answer.finish_reason is FinishReason.LENGTH)
        found = measures(n, answer)
        found.n_tokens = len(tokens)
        return Details(
            list(tokens), vocab.detokenize(self.prompt, unparse_special=True), answer.request.seq or 0, truncated, found,
            self.used(),
        )  # fmt: skip

    def used(self) -> dict[str, Any]:
        """Return the sampling parameters that are used, without the grammar."""
        found = {each.name: getattr(self.params, each.name) for each in fields(self.params) if each.name != "grammar"}
        biases = dict(self.params.logit_bias)
        if self.options.ignore_eos:
            biases |= dict.fromkeys(sorted(self.engine.model.vocab.eog_tokens()), -math.inf)
        breakers = [text if isinstance(text, str) else bytes(text).decode() for text in found["dry_sequence_breakers"]]
        return {
            **found, "logit_bias": list(biases.items()), "samplers": list(self.params.samplers),
            "dry_sequence_breakers": breakers,
        }  # fmt: skip

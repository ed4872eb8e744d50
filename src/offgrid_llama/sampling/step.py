"""Step: decode, sample all rows, and copy the pieces, in one native call (``og_run_step`` of ``_capi/step.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.context.batch import Batch
from offgrid_llama.errors import ClosedError, SamplerError
from offgrid_llama.native.check import text_of

from .scores import Scorer, Scores
from .token_sampler import TokenSampler

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.context.embedding_batch import EmbeddingBatch
    from offgrid_llama.model.vocab import Vocab
    from offgrid_llama.native.handle import Handle

    from .grammar.guide import Guide

__all__ = ["Sampled", "Step"]

_PIECE_BYTES = 64
"""Room for the bytes of one token; a longer piece is asked for alone."""


@dataclass(slots=True)
class Sampled:
    """The tokens that a step has sampled for one group of rows.

    Attributes:
        tokens: token ids; at most one, unless there were guesses or several steps; none where the caller samples.
        pieces: their bytes, as ``vocab.piece`` returns them.
        logprobs: for each token its own and the most probable ones, as FastSampler reports them; empty unless asked for.
        error: why there are no more tokens.
        n_forced: how many of the last tokens the grammar forced: they were not sampled, and no step has decoded them yet.
        ended: whether the text is complete under its grammar, and nothing can follow.
        n_verified: how many guesses the step has computed; the caller sets it.
    """

    tokens: list[int]
    pieces: list[bytes]
    logprobs: list[tuple[float, list[tuple[int, float]]]]
    error: Exception | None = None
    n_forced: int = 0
    ended: bool = False
    n_verified: int = 0

    def force(self, sampler: TokenSampler, vocab: Vocab, room: int) -> None:
        """Append the tokens that the sampler's grammar forces next, at most ``room``."""
        guide = sampler.guide
        if guide is None or not self.tokens:
            return
        must = sampler.forced()
        self.append(must[: max(room, 0)], vocab)
        self.ended = self.n_forced == len(must) and guide.ended and guide.error is None

    def append(self, forced: Sequence[int], vocab: Vocab) -> None:
        """Append tokens that must follow."""
        self.tokens += forced
        self.pieces += [vocab.piece(token) for token in forced]
        self.n_forced += len(forced)


class Step:
    """Rows to decode, and the samplers of their next tokens. ``add`` rows, ``run``, ``clear``, and use it again.

    The caller keeps the samplers, and uses each for one step at a time. Not thread-safe, but for ``interrupt``.

    Args:
        context: the Context that decodes.
        n_groups: most groups of rows to sample from.
        n_scored: most rows to score.
        width: most tokens that one call samples for a group.

    Attributes:
        decode_seconds: time that the last ``run`` spent in ``llama_decode``.
        score_seconds: time that it spent besides to score rows, and to sample, where rows were scored.
        gil_seconds: time that it then waited for the GIL.
        n_done: steps that it made.
    """

    def __init__(self, context: Context, *, n_groups: int, n_scored: int = 0, width: int = 64) -> None:
        self._context = context
        self._batch = Batch(context.n_batch)
        n_all = n_groups + n_scored  # a scored row may be a group of its own
        self._groups = ffi.new("og_group[]", n_all)
        self._tokens_out = ffi.new("llama_token[]", n_all * width)
        self._logprobs_out = ffi.new("float[]", n_all * width)
        self._ends_out = ffi.new("int32_t[]", n_all * width)
        self._pieces_out = ffi.new("char[]", n_groups * width * _PIECE_BYTES)
        self._c = ffi.new(
            "og_step *",
            {
                "groups": self._groups, "group_width": width, "tokens": self._tokens_out, "logprobs": self._logprobs_out,
                "pieces": self._pieces_out, "pieces_size": len(self._pieces_out), "piece_ends": self._ends_out,
            },
        )  # fmt: skip
        self.width = width
        self._scorer = Scorer(context.model.vocab, width)
        self.decode_seconds = self.score_seconds = self.gil_seconds = 0.0
        self.n_done = 0
        self.clear()

    def clear(self) -> None:
        """Empty it for new rows."""
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._seq_ids: list[int] = []
        self._rows: list[int] = []
        self._samplers: list[TokenSampler | None] = []
        self._chains: list[tuple[int, Handle]] = []  # with their groups
        self._guided: list[tuple[int, TokenSampler, Guide]] = []
        self._pads: list[int] = []
        self._embedded: EmbeddingBatch | None = None
        self._scorer.clear()

    def pad(self, seq_id: int, pos: int) -> None:
        """Append a throw-away row behind all tokens of a sequence: ``run`` computes it, and removes it from memory."""
        self._pads.append(len(self._tokens))
        self._rows.append(len(self._tokens))
        self.add((0,), pos, seq_id)

    def add(self, tokens: Sequence[int], pos: int, seq_id: int) -> None:
        """Append tokens of one sequence, from ``pos`` on."""
        n = len(tokens)
        self._tokens += tokens
        self._positions += range(pos, pos + n)
        self._seq_ids += (seq_id,) * n

    def embed(self, rows: EmbeddingBatch) -> None:
        """Take embeddings of one sequence in place of tokens; no other row goes with them."""
        self._embedded = rows
        self._tokens += (0,) * len(rows)

    def sample(self, sampler: TokenSampler | None, *, n_guessed: int = 0, room: int = 1) -> int:
        """Sample from the last of the rows that were added, and return the batch's row.

        Args:
            sampler: a FastSampler or a SamplerChain; with None the caller samples.
            n_guessed: how many of the last tokens are guesses of the tokens sampled from the rows before them. With a guide
                they are the tokens that the sampler's ``foresee`` has just returned.
            room: most tokens to sample.
        """
        end = len(self._tokens)
        row = end - 1 - n_guessed
        rows: Sequence[int] = range(row, end)
        index = len(self._samplers)
        group = self._groups[index]
        group.row, group.n_rows, group.max_tokens, group.n_tokens, group.status = row, 1 + n_guessed, room, 0, 0
        group.row_masks = group.forced_tokens = group.chain = ffi.NULL
        if sampler is None:
            group.sampler = ffi.NULL
        else:
            group.sampler = sampler.native
            if sampler.chain_handle is not None:
                self._chains.append((index, sampler.chain_handle))
            if sampler.n_logprobs is not None:
                sampler.reserve(self.width)
            if (guide := sampler.guide) is not None:
                self._guided.append((index, sampler, guide))
                guide.fill()
                if n_guessed:
                    must = guide.must
                    group.row_masks, group.forced_tokens = guide.masks, must
                    rows = [row + i for i in range(n_guessed + 1) if must[i] < 0]  # the others need no logits
        self._samplers.append(sampler)
        if self._rows[-1:] != [end - 1]:  # otherwise it is scored, too
            self._rows += rows
        return row

    def score(self, row: int, tokens: Sequence[int], n_top: int) -> None:
        """Tell how probable given tokens are, one for each of the batch's rows from ``row`` on, which were added.

        Args:
            row: the first row.
            tokens: of each row but the last it is the token of the next row.
            n_top: how many of the most probable tokens are told for each row, too.
        """
        self._rows += range(row, row + len(tokens))
        self._scorer.add(row, tokens, n_top)

    @property
    def n_rows(self) -> int:
        """How many rows were added."""
        return len(self._tokens)

    def interrupt(self, on: bool = True) -> None:
        """Let each ``run`` from now on return after one step, until ``interrupt(False)``; from any thread."""
        self._c.stop_requested = on

    def run(self, n_steps: int = 1, seconds: float = 0.0) -> list[Sampled]:
        """Decode and sample, and return the tokens of each group, in the order of ``sample``.

        Args:
            n_steps: most steps to make; more than one only where every row is sampled, none is a guess, and no sampler is
                None or has a guide.
            seconds: after this time no further step begins.

        Raises as ``Context.decode`` does. ``results()`` then returns the tokens of the steps before the one that failed.
        """
        c = self._c
        n = len(self._samplers)
        c.n_groups, c.max_steps, c.n_steps_done, c.decode_ns = n + self._scorer.n_groups, n_steps, 0, 0
        if c.n_groups > n:
            self._scorer.fill(self._groups, n)
        c.deadline_ns = perf_counter_ns() + int(seconds * 1e9)
        pads = ffi.new("int32_t[]", self._pads) if self._pads else ffi.NULL
        c.padding_rows, c.n_padding_rows = pads, len(self._pads)
        if self._embedded is None:
            self._batch.fill(self._tokens, self._positions, self._seq_ids, self._rows)
        if self._chains:
            with ExitStack() as stack:
                for index, chain in self._chains:
                    self._groups[index].chain = stack.enter_context(chain)
                self._decode()
        else:
            self._decode()
        results = self.results()
        for index, sampler, guide in self._guided:
            result = results[index]
            for token in result.tokens:
                guide.accept(token)
            if result.error is None:
                result.force(sampler, self._context.model.vocab, self._groups[index].max_tokens - len(result.tokens))
        return results

    def scores(self) -> list[Scores | None]:
        """Return what the last ``run`` has told of each ``score``; None where the logits exclude one of its tokens.

        The memory of such a sequence may lack the tokens behind that one.
        """
        if not self._scorer.n_groups:
            return []
        return self._scorer.read(self._groups, len(self._samplers), self._logprobs_out, self._context.logits)

    def _decode(self) -> None:
        try:
            self._context.decode_with(self._embedded or self._batch, self._native)
        except BaseException:
            self._forget_pads()
            raise
        finally:
            self.n_done, self.decode_seconds = self._c.n_steps_done, self._c.decode_ns * 1e-9

    def _forget_pads(self) -> None:
        """Remove from memory what throw-away rows may have left there, after a decode that failed."""
        with suppress(ClosedError):
            for row in self._pads:
                self._context.memory.remove(self._seq_ids[row], self._positions[row])

    def _native(self, ctx: Any, _: Any) -> int:
        begin = perf_counter_ns()
        code = int(lib.og_run_step(ctx, (self._embedded or self._batch).c, self._c))
        self.score_seconds = (self._c.returned_ns - begin - self._c.decode_ns) * 1e-9 if self._scorer.n_groups else 0.0
        self.gil_seconds = (perf_counter_ns() - self._c.returned_ns) * 1e-9
        return code

    def results(self) -> list[Sampled]:
        """Return the tokens that the last ``run`` has sampled for each group."""
        sampled = []
        begin, width = 0, self.width
        n = len(self._samplers)
        if not n:
            return []
        tokens_out = ffi.unpack(self._tokens_out, n * width) if self.n_done > 1 else None
        for index, sampler in enumerate(self._samplers):
            group = self._groups[index]
            at, count = index * width, group.n_tokens
            if tokens_out is not None:
                tokens = tokens_out[at : at + count]
            else:
                tokens = [self._tokens_out[at + k] for k in range(count)]
            pieces = []
            for k in range(count):
                end = self._ends_out[at + k]
                if end < 0:
                    pieces.append(self._context.model.vocab.piece(tokens[k]))
                else:
                    pieces.append(ffi.buffer(self._pieces_out + begin, end - begin)[:])
                    begin = end
            logprobs = []
            if sampler is not None and sampler.n_logprobs is not None:
                logprobs = [(self._logprobs_out[at + k], sampler.top(k)) for k in range(count)]
            error = None if group.status == 0 else _failure(sampler, group.status)
            sampled.append(Sampled(tokens, pieces, logprobs, error))
        return sampled


def _failure(sampler: TokenSampler | None, status: int) -> Exception:
    if sampler is not None:
        return sampler.failure(status)
    if status == lib.OG_THREW:
        return SamplerError(f"no token could be sampled: {text_of(lib.og_caught_what())}")
    return SamplerError("no token was selected")

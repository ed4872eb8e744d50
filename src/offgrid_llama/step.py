"""Step: decode, sample all rows, and copy the pieces, in one native call (``og_run_step`` of ``_capi/step.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from ._capi import ffi, lib
from ._check import text_of
from .batch import Batch
from .chain import SamplerChain
from .errors import ClosedError, GrammarError, SamplerError
from .fast_sampling import FastSampler

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Sampled", "Step"]

_PIECE_BYTES = 64  # room for a token's; a longer one is asked for alone


@dataclass(slots=True)
class Sampled:
    """What a step has sampled for one group of rows.

    Attributes:
        tokens: token ids; at most one, unless there were guesses or several steps; none where the caller samples.
        pieces: their bytes, as ``vocab.piece`` gives them.
        logprobs: for each token its own and the most probable ones, as FastSampler tells them; empty unless asked for.
        error: why there are no more tokens.
        n_forced: how many of the last tokens were not sampled, as the grammar leaves no choice; they are yet to be decoded.
        ended: whether the text is whole under its grammar, and nothing can follow.
    """

    tokens: list[int]
    pieces: list[bytes]
    logprobs: list[tuple[float, list[tuple[int, float]]]]
    error: Exception | None = None
    n_forced: int = 0
    ended: bool = False

    def force(self, sampler: FastSampler, room: int) -> None:
        """Append what the sampler's grammar says must come next, at most ``room`` tokens."""
        guide = sampler.guide
        if guide is None or not self.tokens:
            return
        must = sampler.forced()
        forced = must[: max(room, 0)]
        self.tokens += forced
        self.pieces += [sampler._vocab.piece(token) for token in forced]
        self.n_forced = len(forced)
        self.ended = len(forced) == len(must) and guide.ended and guide.error is None


class Step:
    """Rows to decode, and what to sample from them. Fill it with ``add``, ``run`` it, ``clear`` it, and use it again.

    The samplers are the caller's, who uses them for one step at a time. Not thread-safe, but for ``interrupt``.

    Args:
        context: what decodes.
        n_groups: most groups of rows that are sampled.
        width: most tokens that one call samples for a group.

    Attributes:
        decode_seconds: how long the last ``run`` has decoded.
        gil_seconds: how long the last ``run`` has then waited for the GIL.
        n_done: how many steps it made.
    """

    def __init__(self, context: Context, *, n_groups: int, width: int = 64) -> None:
        self._context = context
        self._batch = Batch(context.n_batch)
        self._groups = ffi.new("og_group[]", n_groups)
        self._tokens_out = ffi.new("llama_token[]", n_groups * width)
        self._logprobs_out = ffi.new("float[]", n_groups * width)
        self._ends_out = ffi.new("int32_t[]", n_groups * width)
        self._pieces_out = ffi.new("char[]", n_groups * width * _PIECE_BYTES)
        self._c = ffi.new(
            "og_step *",
            {
                "groups": self._groups, "width": width, "tokens": self._tokens_out, "logprobs": self._logprobs_out,
                "pieces": self._pieces_out, "pieces_size": len(self._pieces_out), "ends": self._ends_out,
            },
        )  # fmt: skip
        self.width = width
        self.decode_seconds = self.gil_seconds = 0.0
        self.n_done = 0
        self.clear()

    def clear(self) -> None:
        """Empty it for new rows."""
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._seq_ids: list[int] = []
        self._rows: list[int] = []
        self._samplers: list[FastSampler | SamplerChain | None] = []
        self._pads: list[int] = []

    def pad(self, seq_id: int, pos: int) -> None:
        """Append a row that nobody asked for, behind all that a sequence has: it is computed, and forgotten in ``run``."""
        self._pads.append(len(self._tokens))
        self._rows.append(len(self._tokens))
        self.add((0,), pos, seq_id)

    def add(self, tokens: Sequence[int], pos: int, seq_id: int) -> None:
        """Append tokens of one sequence, at ``pos`` and on."""
        n = len(tokens)
        self._tokens += tokens
        self._positions += range(pos, pos + n)
        self._seq_ids += (seq_id,) * n

    def sample(self, sampler: FastSampler | SamplerChain | None, *, n_guessed: int = 0, room: int = 1) -> int:
        """Sample from the last of the rows that were added, and return the batch's row.

        Args:
            sampler: a FastSampler, or a chain of llama.cpp's own samplers; None leaves it to the caller.
            n_guessed: how many of the last tokens are guesses of what is sampled from the rows before them. Of a sampler
                with a guide they are what its ``foresee`` has just returned.
            room: most tokens to sample.
        """
        end = len(self._tokens)
        row = end - 1 - n_guessed
        rows: Sequence[int] = range(row, end)
        group = self._groups[len(self._samplers)]
        group.row, group.n_rows, group.room, group.n_tokens, group.status = row, 1 + n_guessed, room, 0, 0
        group.masks = group.forced = ffi.NULL
        if type(sampler) is FastSampler:
            group.sampler, group.chain = sampler._c, ffi.NULL
            if sampler._n_logprobs is not None:
                sampler._reserve(self.width)
            if sampler.guide is not None:
                sampler.guide.fill()
                if n_guessed:
                    must = sampler.guide.must
                    group.masks, group.forced = sampler.guide.masks, must
                    rows = [row + i for i in range(n_guessed + 1) if must[i] < 0]  # the others need no logits
        else:
            group.sampler = group.chain = ffi.NULL
        self._samplers.append(sampler)
        self._rows += rows
        return row

    def interrupt(self, on: bool = True) -> None:
        """Let each ``run`` from now on return after one step, until ``interrupt(False)``; from any thread."""
        self._c.attention = on

    def run(self, n_steps: int = 1, seconds: float = 0.0) -> list[Sampled]:
        """Decode and sample, and return what was sampled for each group, in order.

        Args:
            n_steps: most steps to make; more than one only where every row is sampled, none is a guess, and no sampler is
                None or has a guide.
            seconds: after this time no further step begins.

        Raises as ``Context.decode`` does. What the steps before have sampled is then in ``results()``.
        """
        c = self._c
        c.n_groups, c.n_steps, c.n_done, c.decode_ns = len(self._samplers), n_steps, 0, 0
        c.until_ns = perf_counter_ns() + int(seconds * 1e9)
        pads = ffi.new("int32_t[]", self._pads) if self._pads else ffi.NULL
        c.pads, c.n_pads = pads, len(self._pads)
        self._batch._fill(self._tokens, self._positions, self._seq_ids, self._rows)
        with ExitStack() as stack:
            for index, sampler in enumerate(self._samplers):
                if isinstance(sampler, SamplerChain):
                    self._groups[index].chain = stack.enter_context(sampler._handle)
            try:
                self._context._decode(self._batch, self._native)
            except BaseException:
                self._forget_pads()
                raise
            finally:
                self.n_done, self.decode_seconds = c.n_done, c.decode_ns * 1e-9
        results = self.results()
        for index, sampler in enumerate(self._samplers):
            if type(sampler) is FastSampler and sampler.guide is not None:
                for token in results[index].tokens:
                    sampler.guide.accept(token)
                if results[index].error is None:
                    results[index].force(sampler, self._groups[index].room - len(results[index].tokens))
        return results

    def _forget_pads(self) -> None:
        """Forget what rows that nobody asked for may have left, after a decode that failed."""
        with suppress(ClosedError):
            for row in self._pads:
                self._context.memory.remove(self._seq_ids[row], self._positions[row])

    def _native(self, ctx: Any, _: Any) -> int:
        code = int(lib.og_run_step(ctx, self._batch._c, self._c))
        self.gil_seconds = (perf_counter_ns() - self._c.returned_ns) * 1e-9
        return code

    def results(self) -> list[Sampled]:
        """Return what the last ``run`` has sampled for each group."""
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
            if type(sampler) is FastSampler and sampler._n_logprobs is not None:
                logprobs = [(self._logprobs_out[at + k], sampler._top(k)) for k in range(count)]
            error = None if group.status == 0 else self._failure(sampler, group.status)
            sampled.append(Sampled(tokens, pieces, logprobs, error))
        return sampled

    @staticmethod
    def _failure(sampler: FastSampler | SamplerChain | None, status: int) -> GrammarError | SamplerError:
        if isinstance(sampler, SamplerChain):
            return sampler._failure(status)
        if status == lib.OG_THREW:
            return SamplerError(f"no token could be sampled: {text_of(lib.og_caught_what())}")
        if sampler is not None:
            return sampler._nothing()
        return SamplerError("no token was selected")

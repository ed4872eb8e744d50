"""The rows of prompts in a step: how many tokens of each it computes, and from which of them it reads logprobs (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from .limits import Limits
from .media_tokens import Chunk
from .plan import NOTHING_SCORED, R, Rows
from .request import Request
from .running import Running
from .slots import Slots

__all__ = ["callers_waiting", "chunk_rows", "next_piece", "shared_rows"]


def callers_waiting(generating: Sequence[Request], prompts: Sequence[Request]) -> float:
    """Return how many callers wait for a prompt for each that waits for a token: tenants, or the requests of a single one.

    However many prompts a tenant sends, the texts of another slow down no more than by one.
    """
    ours, theirs = {request.tenant for request in prompts}, {request.tenant for request in generating}
    if len(ours | theirs) == 1:
        return len(prompts) / max(len(generating), 1)
    return len(ours) / max(len(theirs), 1)


def shared_rows(prompts: list[Running[R]], room: int, n_outputs: int, slots: Slots, n_ctx_seq: int) -> list[Rows[R]]:
    """Return rows of prompts that share a step.

    The shortest prompt comes first, so that the others share what it leaves. Those of which logprobs are wanted come before
    all others: the rows with logits limit them, too.

    Args:
        prompts: the requests, which are sorted.
        room: the most tokens of all.
        n_outputs: the most rows with logits of all; at least one for each prompt.
        slots: their sequences.
        n_ctx_seq: the most tokens of a sequence.
    """
    rows = []
    prompts.sort(key=lambda run: (run.request.scored is None, len(run.todo)))
    n_scored = sum(run.request.scored is not None for run in prompts)
    spare = n_outputs - len(prompts)  # each prompt has a row with logits of its own, for its end
    for left, run in zip(range(len(prompts), 0, -1), prompts, strict=True):
        pos = slots.n_computed(run.seq)
        n = min(len(run.todo), -(-room // left), run.n_alike(pos))
        if (stop := slots.stop_at(run.seq)) is not None:
            n = min(n, stop - pos)
        scored = NOTHING_SCORED
        if n_scored:
            n, scored = _scored(run.request, pos, n, -(-spare // n_scored))
            n_scored -= 1
            if spare:
                spare -= len(scored)
        if n:
            room -= n
            rows.append(_rows(run, n, pos, scored, n_ctx_seq))
    return rows


def next_piece(run: Running[R], limits: Limits, slots: Slots) -> Rows[R]:
    """Return the rows of a prompt up to the end of the piece that it is in, so that pieces are the same in each request."""
    pos, piece = slots.n_computed(run.seq), limits.piece
    n, scored = _scored(run.request, pos, min(len(run.todo), piece - pos % piece, run.n_alike(pos)), piece)
    return _rows(run, n, pos, scored, limits.n_ctx_seq)


def chunk_rows(run: Running[R], chunk: Chunk, room: int, slots: Slots, limits: Limits) -> Rows[R]:
    """Return the next rows of a chunk, up to ``room`` of them; all, if its rows look at each other."""
    pos, piece = slots.n_computed(run.seq), limits.piece
    n = run.n_alike(pos)
    if chunk.causal:
        n = min(n, piece - pos % piece if piece else room)
    rows = _rows(run, n, pos, NOTHING_SCORED, limits.n_ctx_seq)
    rows.chunk = chunk
    return rows


def _rows(run: Running[R], n: int, pos: int, scored: range, n_ctx_seq: int) -> Rows[R]:
    most = min(run.request.max_tokens - len(run.request.tokens), n_ctx_seq - pos - n + 1)
    return Rows(run.request, run.seq, run.todo[:n], pos, n == len(run.todo), most, scored=scored)


def _scored(request: Request, pos: int, n: int, most: int) -> tuple[int, range]:
    """Return how many of the next ``n`` tokens of a request are computed, and which of them are scored.

    Args:
        request: the request.
        pos: the position of the first token.
        n: the most tokens.
        most: the most of them that are scored, besides the row with logits that each prompt has; with 0 it is this one.
    """
    if request.scored is None:
        return n, NOTHING_SCORED
    if not most:
        n = min(n, 1)
    begin = max(request.scored - 1 - pos, 0)
    end = min(n, len(request.prompt) - 1 + request.scores_next - pos)
    if most and end - begin > most:
        n = end = begin + most
    return n, range(begin, end) if begin < end else NOTHING_SCORED

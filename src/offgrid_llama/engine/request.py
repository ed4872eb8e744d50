"""EngineRequest: a request with its sampler, and with the text that is on its way to the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .planning.request import Request

if TYPE_CHECKING:
    from offgrid_llama.sampling.token_sampler import TokenSampler
    from offgrid_llama.tasks.request_options import LogitsProcessor
    from offgrid_llama.text.text_stream import TextStream

    from .completion import Answer, Events
    from .media_prompt import MediaPrompt
    from .prompt_logprobs import PromptLogprobs

__all__ = ["EngineRequest"]


@dataclass(eq=False, slots=True)
class EngineRequest(Request):
    """One sequence to generate.

    Attributes:
        sampler: chooses its tokens.
        stream: turns its tokens into text.
        events: the completion that it belongs to.
        processors: change its logits before they are sampled.
        min_tokens: its text has at least this number of tokens; the last of ``processors`` sees to it.
        until: ends its answer, by the text and the seconds since the first token; None does not.
        reports_progress: whether its stream tells how much of its prompt is computed.
        media: the pictures and sounds of its prompt; None has none.
        prompt_logprobs: takes the logprobs of its prompt's tokens; None where they are not wanted.
        shown: the text of control tokens that its answer shows; None shows none.
        answer: what its caller sees.
        n_delivered: tokens that a piece has had.
        delivered: when the last piece was delivered, by ``time.perf_counter``.
        held: text that comes with the next piece.
    """

    sampler: TokenSampler = field(kw_only=True)
    stream: TextStream = field(kw_only=True)
    events: Events = field(kw_only=True)
    processors: Sequence[LogitsProcessor] = field(default=(), kw_only=True)
    shown: Mapping[int, bytes] | None = field(default=None, kw_only=True)
    min_tokens: int = field(default=0, kw_only=True)
    until: Callable[[str, float], bool] | None = field(default=None, kw_only=True)
    reports_progress: bool = field(default=False, kw_only=True)
    media: MediaPrompt | None = field(default=None, kw_only=True)
    prompt_logprobs: PromptLogprobs | None = field(default=None, kw_only=True)
    answer: Answer = field(init=False, repr=False)
    n_delivered: int = field(default=0, init=False)
    delivered: float = field(default=0.0, init=False)
    held: str = field(default="", init=False)

"""A first ``generate``: one prompt, one sequence, a loop over the nouns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from ._check import number
from .batch import Batch
from .chain import SamplerChain
from .context import Context
from .errors import ContextLengthError
from .fast_sampling import FastSampler, sampler_for
from .grammar import Grammar
from .model import Model
from .params import ContextParams
from .sampling_params import SamplingParams
from .text import TextStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Generation", "generate"]

FinishReason = Literal["", "stop", "length"]


@dataclass
class Generation:
    """The text as it comes: iterate over it for pieces of str, or take ``text``, which waits for the end.

    Where it may be left early, use it in a ``with`` block, or call ``close()``.

    Attributes:
        tokens: token ids generated so far. pieces: their text so far.
        finish_reason: "stop" (end of generation, or a stop string), "length" (``max_tokens`` or the context is full), or
            "" while it runs.
        n_prompt: tokens of the prompt. prompt_seconds: time for the prompt. decode_seconds: time after the first token.
    """

    n_prompt: int = 0
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason = ""
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    _steps: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        for piece in self._steps:
            if piece:
                self.pieces.append(piece)
                yield piece

    def close(self) -> None:
        """Stop, and free the context and the samplers; what was generated stays. The end of the text does so too."""
        if isinstance(self._steps, Generator):
            self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def text(self) -> str:
        """All text; generates what is still to come."""
        for _ in self:
            pass
        return "".join(self.pieces)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, without the prompt; 0 before the second token."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0


def generate(
    model: Model,
    prompt: str | bytes | Sequence[int],
    *,
    max_tokens: int = 256,
    sampling: SamplingParams | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    stop: str | Iterable[str] = (),
    grammar: Grammar | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    parse_special: bool = False,
) -> Generation:
    """Return a Generation that goes on with ``prompt``. Nothing is computed before it is iterated over, or asked for text.

    Args:
        model: the Model.
        prompt: text (str, or bytes of UTF-8), or token ids as they are.
        max_tokens: most tokens to generate.
        sampling: how tokens are chosen; None is SamplingParams as it is.
        temperature, top_k, top_p, min_p, seed, grammar: stand in place of those of ``sampling``. A temperature of 0 is
            greedy; a grammar is what the text must be.
        stop: strings that end the text; they are not part of it.
        n_ctx: positions; None is the prompt and ``max_tokens``, and at most what the model was trained for.
        n_threads: see Context.
        parse_special: read ``<|im_start|>`` and the like in a prompt of text as control tokens, as a rendered chat
            template needs.

    Raises:
        ContextLengthError: the prompt does not fit; before anything is computed.
        ValueError, TypeError, UnicodeError, TokenizeError: an argument is not as above; at the call, too.
    """
    model._handle.check_open()
    vocab, stream = model.vocab, TextStream(stop)
    if isinstance(prompt, (str, bytes)):
        tokens = vocab.tokenize(prompt, parse_special=parse_special)
    else:
        tokens = [vocab._id(f"prompt[{i}]", token) for i, token in enumerate(prompt)]
    if not tokens:
        raise ValueError("prompt gives no tokens")
    max_tokens = number("max_tokens", max_tokens, 1)
    if n_ctx is None:
        n_ctx = min(len(tokens) + max_tokens, model.n_ctx_train or 2**20)
    if len(tokens) >= number("n_ctx", n_ctx, 1):
        raise ContextLengthError(
            f"the prompt has {len(tokens)} tokens and n_ctx is {n_ctx}: there is no room to generate",
            n_tokens=len(tokens), n_ctx=n_ctx,
        )  # fmt: skip
    ContextParams(n_ctx=n_ctx, n_threads=n_threads)
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise TypeError(f"sampling must be SamplingParams, not {type(sampling).__name__}")
    given: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "grammar": grammar
    }  # fmt: skip
    params = replace(sampling or SamplingParams(), **{key: value for key, value in given.items() if value is not None})
    for token in params.logit_bias:
        vocab._id("logit_bias token", token)

    generation = Generation(n_prompt=len(tokens))
    context = lambda: Context(model, n_ctx=n_ctx, n_outputs_max=1, n_threads=n_threads)  # noqa: E731
    sampler = lambda: sampler_for(params, vocab)  # noqa: E731
    generation._steps = _steps(generation, tokens, min(max_tokens, n_ctx - len(tokens)), context, sampler, stream)
    return generation


def _steps(
    generation: Generation,
    tokens: list[int],
    room: int,
    make_context: Callable[[], Context],
    make_sampler: Callable[[], FastSampler | SamplerChain],
    stream: TextStream,
) -> Iterator[str]:
    with make_context() as context, closing(make_sampler()) as sampler:
        vocab, n_batch = context.model.vocab, context.n_batch
        batch = Batch(min(n_batch, len(tokens)))
        begin = perf_counter()
        for start in range(0, len(tokens), n_batch):
            batch.clear()
            batch.add_sequence(tokens[start : start + n_batch], pos=start)
            context.decode(batch)
        token = sampler.sample(context, -1)
        generation.prompt_seconds = perf_counter() - begin
        while not (ended := vocab.is_eog(token)):
            generation.tokens.append(token)
            yield stream.push(vocab.piece(token))
            if stream.stopped is not None or len(generation.tokens) == room:
                break
            begin = perf_counter()  # the time at the yield is the reader's
            batch.clear()
            batch.add(token, generation.n_prompt + len(generation.tokens) - 1, [0], logits=True)
            context.decode(batch)
            token = sampler.sample(context, -1)
            generation.decode_seconds += perf_counter() - begin
    rest = stream.finish()
    generation.finish_reason = "stop" if ended or stream.stopped is not None else "length"
    yield rest

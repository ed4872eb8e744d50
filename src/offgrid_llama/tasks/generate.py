"""``generate``: one prompt, one sequence, a short loop over the nouns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from offgrid_llama.context.batch import Batch
from offgrid_llama.context.context import Context
from offgrid_llama.errors import ContextLengthError
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.model.model import check_model
from offgrid_llama.model.params import ContextParams
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import number
from offgrid_llama.sampling.chain import SamplerChain
from offgrid_llama.sampling.fast_sampler import FastSampler, sampler_for
from offgrid_llama.text.text_stream import TextStream

from .prompt_tokens import prompt_tokens
from .request_options import GenerationArguments, RequestOptions

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from offgrid_llama.model.model import Model

__all__ = ["Generation", "generate"]


@dataclass
class Generation(Bound):
    """A text that is being generated: iterate over it for pieces of str, or take ``text``, which waits for the end.

    If you may leave it early, use it in a ``with`` block, or call ``close()``.

    Attributes:
        tokens: token ids generated so far. pieces: their text so far.
        finish_reason: ``FinishReason.STOP`` (end of generation, or a stop string), ``LENGTH`` (``max_tokens``, or the
            context is full), or None while it runs.
        n_prompt: tokens of the prompt. prompt_seconds: time for the prompt. decode_seconds: time after the first token.
    """

    _instead = "keep its text and its tokens"

    n_prompt: int = 0
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
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
    n_ctx: int | None = None,
    n_threads: int | None = None,
    **options: Unpack[GenerationArguments],
) -> Generation:
    """Return a Generation that continues ``prompt``. Nothing is computed before it is iterated over, or asked for its text.

    Args:
        model: the Model.
        prompt: text (str, or bytes of UTF-8), or token ids as they are.
        n_ctx: positions; None is the prompt and ``max_tokens``, and at most what the model was trained for.
        n_threads: threads to compute with; None is the number of physical cores (see Context).
        options: ``max_tokens``, ``sampling``, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``seed``, ``grammar``,
            ``stop`` and ``parse_special``: see RequestOptions.

    Raises:
        ContextLengthError: the prompt does not fit; raised before anything is computed.
        ValueError, TypeError, UnicodeError, TokenizeError: an argument is not as above; raised by the call itself.
    """
    return start(model, prompt, RequestOptions.read("generate", options, GenerationArguments), n_ctx, n_threads)


def start(
    model: Model,
    prompt: str | bytes | Sequence[int],
    options: RequestOptions,
    n_ctx: int | None,
    n_threads: int | None,
) -> Generation:
    """Return the Generation of checked options; see ``generate``."""
    check_model(model)
    vocab, stream = model.vocab, TextStream(options.stop)
    tokens = prompt_tokens(vocab, prompt, parse_special=options.parse_special)
    if n_ctx is None:
        n_ctx = min(len(tokens) + options.max_tokens, model.n_ctx_train or 2**20)
    if len(tokens) >= number("n_ctx", n_ctx, 1):
        raise ContextLengthError(
            f"the prompt has {len(tokens)} tokens and n_ctx is {n_ctx}: there is no room to generate",
            n_tokens=len(tokens), n_ctx=n_ctx,
        )  # fmt: skip
    ContextParams(n_ctx=n_ctx, n_threads=n_threads)
    for token in options.params.logit_bias:
        vocab.check_token("logit_bias token", token)

    generation = Generation(n_prompt=len(tokens))
    context = lambda: Context(model, n_ctx=n_ctx, n_outputs_max=1, n_threads=n_threads)  # noqa: E731
    sampler = lambda: sampler_for(options.params, vocab)  # noqa: E731
    room = min(options.max_tokens, n_ctx - len(tokens))
    generation._steps = _steps(generation, tokens, room, context, sampler, stream)
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
    generation.finish_reason = FinishReason.STOP if ended or stream.stopped is not None else FinishReason.LENGTH
    yield rest

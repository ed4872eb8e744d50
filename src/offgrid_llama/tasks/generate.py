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

from .prompt import MediaPrompt, Prompt, TokenPrompt
from .prompt_tokens import prompt_tokens
from .request_options import GenerationArguments, RequestOptions

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from offgrid_llama.media.projector import Projector, PromptPart
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
    prompt: str | bytes | Sequence[PromptPart],
    *,
    projector: Projector | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    **options: Unpack[GenerationArguments],
) -> Generation:
    """Return a Generation that continues ``prompt``. Nothing is computed before it is iterated over, or asked for its text.

    Args:
        model: the Model.
        prompt: text (str, or bytes of UTF-8), or token ids as they are; beside a projector, a list of texts, Images,
            Audios and token ids, too.
        projector: the model's Projector, if the prompt has pictures or sound.
        n_ctx: positions; None is the prompt and ``max_tokens``, and at most what the model was trained for.
        n_threads: threads to compute with; None is the number of physical cores (see Context).
        options: ``max_tokens``, ``sampling``, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``seed``, ``grammar``,
            ``stop`` and ``parse_special``: see RequestOptions.

    Raises:
        ContextLengthError: the prompt does not fit; raised before anything is computed.
        MediaError: a picture or a sound is damaged, or is none that the projector takes.
        ValueError, TypeError, UnicodeError, TokenizeError: an argument is not as above; raised by the call itself.
    """
    checked = RequestOptions.read("generate", options, GenerationArguments)
    return start(model, _prompt(model, prompt, projector, checked.parse_special), checked, n_ctx, n_threads)


def _prompt(
    model: Model,
    prompt: str | bytes | Sequence[PromptPart],
    projector: Projector | None,
    parse_special: bool,
) -> Prompt:
    """Return a prompt as ``generate`` takes it, counted and checked."""
    check_model(model)
    if projector is None or isinstance(prompt, (str, bytes)) or all(isinstance(part, int) for part in prompt):
        return TokenPrompt(prompt_tokens(model.vocab, prompt, parse_special=parse_special))  # type: ignore[arg-type]
    if projector.model is not model:
        raise ValueError(f"projector is that of {projector.model.handle.name}, and model is {model.handle.name}")
    return MediaPrompt(projector, prompt, parse_special)


def start(
    model: Model, prompt: Prompt, options: RequestOptions, n_ctx: int | None, n_threads: int | None
) -> Generation:
    """Return the Generation of a counted prompt and of checked options; see ``generate``."""
    vocab, stream = model.vocab, TextStream(options.stop)
    if n_ctx is None:
        n_ctx = min(prompt.n_tokens + options.max_tokens, model.n_ctx_train or 2**20)
    if prompt.n_tokens >= number("n_ctx", n_ctx, 1):
        raise ContextLengthError(
            f"the prompt has {prompt.n_tokens} tokens and n_ctx is {n_ctx}: there is no room to generate",
            n_tokens=prompt.n_tokens, n_ctx=n_ctx,
        )  # fmt: skip
    params = ContextParams(n_ctx=n_ctx, n_threads=n_threads)
    sizes = {name: max(getattr(params, name), prompt.n_together) for name in ("n_batch", "n_ubatch")}
    for token in options.params.logit_bias:
        vocab.check_token("logit_bias token", token)

    generation = Generation(n_prompt=prompt.n_tokens)
    context = lambda: Context(model, n_ctx=n_ctx, n_outputs_max=1, n_threads=n_threads, **sizes)  # noqa: E731
    sampler = lambda: sampler_for(options.params, vocab)  # noqa: E731
    room = min(options.max_tokens, n_ctx - prompt.n_tokens)
    generation._steps = _steps(generation, prompt, room, context, sampler, stream)
    return generation


def _steps(
    generation: Generation,
    prompt: Prompt,
    room: int,
    make_context: Callable[[], Context],
    make_sampler: Callable[[], FastSampler | SamplerChain],
    stream: TextStream,
) -> Iterator[str]:
    with make_context() as context, closing(make_sampler()) as sampler:
        vocab, batch = context.model.vocab, Batch(1)
        begin = perf_counter()
        prompt.decode(context)
        token = sampler.sample(context, -1)
        generation.prompt_seconds = perf_counter() - begin
        while not (ended := vocab.is_eog(token)):
            generation.tokens.append(token)
            yield stream.push(vocab.piece(token))
            if stream.stopped is not None or len(generation.tokens) == room:
                break
            begin = perf_counter()  # the time at the yield is the reader's
            batch.clear()
            batch.add(token, prompt.end + len(generation.tokens) - 1, [0], logits=True)
            context.decode(batch)
            token = sampler.sample(context, -1)
            generation.decode_seconds += perf_counter() - begin
    rest = stream.finish()
    generation.finish_reason = FinishReason.STOP if ended or stream.stopped is not None else FinishReason.LENGTH
    yield rest

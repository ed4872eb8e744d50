"""A first ``generate``: one prompt, one sequence, a loop over the nouns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from . import sampling
from ._check import number, real
from .batch import Batch
from .context import Context
from .errors import ContextLengthError
from .grammar import Grammar
from .model import Model
from .params import ContextParams
from .sampling import SamplerChain
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
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
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
        temperature: 0 is greedy.
        top_k, top_p, min_p, seed: see ``offgrid_llama.samplers``.
        stop: strings that end the text; they are not part of it.
        grammar: what the text must be.
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
    if grammar is not None and not isinstance(grammar, Grammar):
        raise TypeError(f"grammar must be a Grammar, such as Grammar.gbnf(text), not {type(grammar).__name__}")
    temperature = real("temperature", temperature, 0)
    top_k, top_p, min_p = number("top_k", top_k, 0), real("top_p", top_p, 0, 1), real("min_p", min_p, 0, 1)
    sampling._seed(seed)

    def chain() -> SamplerChain:
        first = [grammar.sampler(vocab)] if grammar else []
        if temperature == 0:
            return SamplerChain([*first, sampling.greedy()])
        narrow = [sampling.top_k(top_k), sampling.top_p(top_p), sampling.min_p(min_p)]
        return SamplerChain([*first, *narrow, sampling.temp(temperature), sampling.dist(seed)])

    generation = Generation(n_prompt=len(tokens))
    context = lambda: Context(model, n_ctx=n_ctx, n_outputs_max=1, n_threads=n_threads)  # noqa: E731
    generation._steps = _steps(generation, tokens, min(max_tokens, n_ctx - len(tokens)), context, chain, stream)
    return generation


def _steps(
    generation: Generation,
    tokens: list[int],
    room: int,
    make_context: Callable[[], Context],
    make_chain: Callable[[], SamplerChain],
    stream: TextStream,
) -> Iterator[str]:
    with make_context() as context, make_chain() as chain:
        vocab, n_batch = context.model.vocab, context.n_batch
        batch = Batch(min(n_batch, len(tokens)))
        begin = perf_counter()
        for start in range(0, len(tokens), n_batch):
            batch.clear()
            batch.add_sequence(tokens[start : start + n_batch], pos=start)
            context.decode(batch)
        token = chain.sample(context, -1)
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
            token = chain.sample(context, -1)
            generation.decode_seconds += perf_counter() - begin
    rest = stream.finish()
    generation.finish_reason = "stop" if ended or stream.stopped is not None else "length"
    yield rest

"""LiteLLM on Engines of this process: after ``register()``, ``litellm.completion("offgrid/NAME", ...)`` and its likes.

``NAME`` is the name or path of a model, or a name that ``register`` was given. All requests of a model share one engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import litellm
from litellm.types.utils import Embedding, Usage

from offgrid_llama.engine.engine import Engine
from offgrid_llama.errors import (
    ContextLengthError,
    GrammarError,
    ModelLoadError,
    OffgridLlamaError,
    QueueFullError,
    UnknownModelError,
)
from offgrid_llama.integrations.asking import checked, embedder_of, engine_of, submitted
from offgrid_llama.tasks.embedding import Embedder

from .answers import Answers

__all__ = ["PROVIDER", "OffgridLlamaProvider", "register"]

PROVIDER = "offgrid"
"""What comes before the slash in the names of models."""

_OF_SERVICES = {
    "audio", "extra_headers", "max_retries", "metadata", "modalities", "prompt_cache_key", "safety_identifier",
    "service_tier", "store", "stream", "stream_options", "user", "verbosity", "web_search_options",
}  # fmt: skip
"""Options of LiteLLM that say nothing to an engine of this process."""


class OffgridLlamaProvider(litellm.CustomLLM):  # type: ignore[misc]  # LiteLLM is not there for mypy
    """A provider of LiteLLM.

    A task that is cancelled, and a stream that is closed, cancel their request.

    Args:
        models: names for paths, Engines and Embedders; other names are those of models, or paths.
        engine_options: further arguments of each Engine that is made, such as ``{"n_ctx": 32768}``.
        embedder_options: the same of each Embedder.

    Raises ValueError for a model of another kind.
    """

    def __init__(
        self,
        models: Mapping[str, Any] | None = None,
        *,
        engine_options: Mapping[str, Any] | None = None,
        embedder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.models = {
            name: model if isinstance(model, Embedder) else checked(model) for name, model in (models or {}).items()
        }
        self.engine_options = dict(engine_options or {})
        self.embedder_options = dict(embedder_options or {})

    # Answers -------------------------------------------------------------------------------------------------------------

    def completion(self, model: str, messages: Sequence[Any], **rest: Any) -> Any:
        """Return the answers to a conversation."""
        with _told_as_theirs(model), self._submitted(model, messages, rest) as answers:
            answers.completion.result()
            return answers.response(rest["model_response"])

    async def acompletion(self, model: str, messages: Sequence[Any], **rest: Any) -> Any:
        """Do what ``completion`` does."""
        with _told_as_theirs(model), await asyncio.to_thread(self._submitted, model, messages, rest) as answers:
            await answers.completion
            return answers.response(rest["model_response"])

    def streaming(self, model: str, messages: Sequence[Any], **rest: Any) -> Iterator[Any]:
        """Yield an answer as it comes."""
        with _told_as_theirs(model), self._submitted(model, messages, rest, streams=True) as answers:
            for delta in answers.completion:
                yield from answers.chunks(delta)

    async def astreaming(self, model: str, messages: Sequence[Any], **rest: Any) -> AsyncIterator[Any]:
        """Do what ``streaming`` does."""
        submitting = asyncio.to_thread(self._submitted, model, messages, rest, streams=True)
        with _told_as_theirs(model), await submitting as answers:
            async for delta in answers.completion:
                for chunk in answers.chunks(delta):
                    yield chunk

    def _submitted(
        self, model: str, messages: Sequence[Any], rest: Mapping[str, Any], *, streams: bool = False
    ) -> Answers:
        options = _options(rest.get("optional_params") or {})
        if streams and options.get("n", 1) != 1:
            raise ValueError("n: a stream has one answer")
        engine = engine_of(self._named(model, Engine), self.engine_options)
        return Answers(submitted(engine, {}, [*map(_message, messages)], options), model, engine.model.vocab)

    def _named(self, model: str, kind: type) -> Any:
        found = self.models.get(model, model)
        if isinstance(found, (str, kind)):
            return found
        raise ValueError(f"model: {model!r} is an {type(found).__name__}, where an {kind.__name__} is wanted")

    # Vectors -------------------------------------------------------------------------------------------------------------

    def embedding(self, model: str, input: str | Sequence[Any], **rest: Any) -> Any:  # noqa: A002  # LiteLLM's name
        """Return the vectors of texts, or of lists of token ids, of length 1. Texts that are too long are refused."""
        one = isinstance(input, str) or (len(input) > 0 and isinstance(input[0], int))
        texts: Sequence[Any] = [input] if one else input
        with _told_as_theirs(model):
            embedder = embedder_of(self._named(model, Embedder), self.embedder_options)
            tokens = [embedder.model.vocab.tokenize(text) if isinstance(text, str) else text for text in texts]
            vectors = embedder.embed(tokens).tolist() if tokens else []
        n_tokens = sum(map(len, tokens))
        response = rest["model_response"]
        response.model = model
        response.data = [Embedding(embedding=each, index=at, object="embedding") for at, each in enumerate(vectors)]
        response.usage = Usage(prompt_tokens=n_tokens, completion_tokens=0, total_tokens=n_tokens)
        return response

    async def aembedding(self, model: str, input: str | Sequence[Any], **rest: Any) -> Any:  # noqa: A002
        """Do what ``embedding`` does, in a thread."""
        return await asyncio.to_thread(self.embedding, model, input, **rest)


def register(
    models: Mapping[str, Any] | None = None,
    *,
    provider: str = PROVIDER,
    engine_options: Mapping[str, Any] | None = None,
    embedder_options: Mapping[str, Any] | None = None,
) -> OffgridLlamaProvider:
    """Make LiteLLM answer ``PROVIDER/NAME`` on Engines of this process. A later call adds to what an earlier one has said.

    Args:
        models: names for paths, Engines and Embedders; other names are those of models, or paths.
        provider: what comes before the slash.
        engine_options: further arguments of each Engine that is made, such as ``{"n_ctx": 32768}``.
        embedder_options: the same of each Embedder.

    Raises as OffgridLlamaProvider does.
    """
    handler = OffgridLlamaProvider(models, engine_options=engine_options, embedder_options=embedder_options)
    known = {each["provider"]: each["custom_handler"] for each in litellm.custom_provider_map}
    before = known.get(provider)
    if isinstance(before, OffgridLlamaProvider):
        handler.models = {**before.models, **handler.models}
        handler.engine_options = {**before.engine_options, **handler.engine_options}
        handler.embedder_options = {**before.embedder_options, **handler.embedder_options}
    known[provider] = handler
    litellm.custom_provider_map = [{"provider": name, "custom_handler": each} for name, each in known.items()]
    litellm.utils.custom_llm_setup()
    return handler


# From LiteLLM -----------------------------------------------------------------------------------------------------------


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as ``Engine.chat`` takes them."""
    further = given.get("extra_body") or {}
    options = {**given, **further}
    options.pop("extra_body", None)
    options = {name: value for name, value in options.items() if name not in _OF_SERVICES and value is not None}
    variables = dict(options.pop("chat_template_kwargs", None) or {})
    if effort := options.pop("reasoning_effort", None):
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
            options.setdefault("reasoning_budget", 0)
    thinking = options.pop("thinking", None)
    if isinstance(thinking, Mapping):
        options.setdefault(
            "reasoning_budget", 0 if thinking.get("type") == "disabled" else thinking.get("budget_tokens")
        )
    if variables:
        options["variables"] = {**variables, **(options.get("variables") or {})}
    return options


def _message(message: Any) -> Any:
    """Return a message as a dict; LiteLLM's own answers are objects."""
    return message if isinstance(message, Mapping) else message.model_dump(exclude_none=True)


@contextmanager
def _told_as_theirs(model: str) -> Iterator[None]:
    """Raise LiteLLM's errors for ours: its retries and fallbacks go by these."""
    try:
        yield
    except (OffgridLlamaError, ValueError, TypeError, OSError) as error:
        kind = next(theirs for ours, theirs in _ERRORS if isinstance(error, ours))
        raise kind(message=str(error), model=model, llm_provider=PROVIDER) from error


_ERRORS = (
    (ContextLengthError, litellm.ContextWindowExceededError), (QueueFullError, litellm.RateLimitError),
    ((UnknownModelError, ModelLoadError, OSError), litellm.NotFoundError),
    ((ValueError, TypeError, GrammarError), litellm.BadRequestError), (Exception, litellm.InternalServerError),
)  # fmt: skip

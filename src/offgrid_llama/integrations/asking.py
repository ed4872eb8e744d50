"""What the models of frameworks have in common: the Engine they mean, and options under the names that others give them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from offgrid_llama.engine.chat_completion import ChatCompletion
from offgrid_llama.engine.chat_options import ChatOptions
from offgrid_llama.engine.completion import Completion
from offgrid_llama.engine.engine import Engine
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.tasks.embedding import Embedder
from offgrid_llama.tasks.reranking import Reranker

from .engines import shared_embedder, shared_engine, shared_reranker

__all__ = [
    "checked", "choice_of", "embedder_of", "engine_of", "name_of", "prompt_length", "reranker_of", "submitted",
    "submitted_prompt",
]  # fmt: skip

_SAMPLING = {each.name for each in fields(SamplingParams)} - {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "grammar",
}
"""The fields of SamplingParams that are not options of ``Engine.chat``, too."""


def checked(model: Any, kind: type = Engine) -> Any:
    """Return a model that is the name or path of one, as a text, or an object of a kind. Raises ValueError for others."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, kind):
        return model
    raise ValueError(f"model: {kind.__name__}, or the name or path of a model, is wanted, not {type(model).__name__}")


def name_of(model: Any) -> str:
    """Return the name or path of a model, of which there may be an Engine, Embedder or Reranker."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else str(model.model.path)


def engine_of(model: Any, engine_options: Mapping[str, Any]) -> Engine:
    """Return a model's Engine: itself, or the one shared by all models with this name and these options."""
    return model if isinstance(model, Engine) else shared_engine(model, **engine_options)


def embedder_of(model: Any, options: Mapping[str, Any]) -> Embedder:
    """Return a model's Embedder, as ``engine_of`` does."""
    return model if isinstance(model, Embedder) else shared_embedder(model, **options)


def reranker_of(model: Any, options: Mapping[str, Any]) -> Reranker:
    """Return a model's Reranker, as ``engine_of`` does."""
    return model if isinstance(model, Reranker) else shared_reranker(model, **options)


def submitted(
    model: Any,
    engine_options: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> ChatCompletion[Any]:
    """Submit a conversation.

    Args:
        model: the name or path of a model, or an Engine.
        engine_options: further arguments of Engine, for a name or path.
        messages: as ``Engine.chat`` takes them.
        options: those of ``Engine.chat``, fields of SamplingParams, and OpenAI's "max_completion_tokens", and "logprobs" as
            a bool beside "top_logprobs". None is the default, and for ``max_tokens`` the end of the sequence.

    Raises as ``Engine.chat`` does.
    """
    engine = engine_of(model, engine_options)
    return engine.chat(messages, **_given(engine, options))


def prompt_length(
    model: Any,
    engine_options: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> int:
    """Return the number of tokens of the prompt that ``submitted`` would compute; arguments and errors are the same."""
    engine = engine_of(model, engine_options)
    given = _given(engine, options)
    given.pop("response_format", None)
    asked, _ = ChatOptions.split("Engine.chat", given)  # type: ignore[arg-type]
    prompt, _ = asked.prompt(messages, engine.chat_format(asked.template, tools=bool(asked.tools)), "")
    return len(prompt.tokens)


def submitted_prompt(
    model: Any, engine_options: Mapping[str, Any], prompt: str, options: Mapping[str, Any]
) -> Completion:
    """Submit a prompt as it is, with its control tokens: what ``submitted`` does, with the options of ``Engine.submit``."""
    engine = engine_of(model, engine_options)
    return engine.submit(prompt, **{"parse_special": True, **_given(engine, options)})


def _given(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that an engine takes."""
    given = {name: value for name, value in options.items() if value is not None}
    limit = given.pop("max_completion_tokens", engine.n_ctx_seq)
    given.setdefault("max_tokens", limit)
    n_top = given.pop("top_logprobs", 0)
    if isinstance(given.get("logprobs"), bool):
        given["logprobs"] = n_top if given["logprobs"] else None
    if sampling := {name: given.pop(name) for name in sorted(_SAMPLING & given.keys())}:
        if bias := sampling.get("logit_bias"):
            sampling["logit_bias"] = {_token_id(token): value for token, value in bias.items()}
        given["sampling"] = replace(given.get("sampling") or SamplingParams(), **sampling)
    return given


def _token_id(key: Any) -> int:
    """Return the key of a ``logit_bias``, which JSON makes a text, as a token id."""
    try:
        return int(key)
    except ValueError:
        raise ValueError(f"logit_bias: the keys are token ids, and {key!r} is none") from None


def choice_of(choice: Any) -> Any:
    """Return a choice among tools as ``Engine.chat`` takes it; other names of it are "any", True and Anthropic's dict."""
    if choice in (True, "any"):
        return "required"
    if isinstance(choice, Mapping) and "name" in choice:
        return choice["name"]
    return choice or None

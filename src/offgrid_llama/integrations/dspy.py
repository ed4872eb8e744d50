"""DSPy on Engines of this process: a language model, through LiteLLM, and an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dspy
import litellm

from offgrid_llama.tasks.embedding import Embedder

from .asking import checked, embedder_of, engine_of, name_of
from .litellm import PROVIDER, register

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["embedder", "language_model"]


def language_model(
    model: Any, *, name: str | None = None, engine_options: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Return a ``dspy.LM`` on the engine that this process has for a model.

    DSPy's adapters learn that it holds schemas and calls tools. DSPy keeps answers in its cache unless ``cache=False`` is
    given. Where a program that was saved with it is loaded, call this, or ``register`` of ``integrations.litellm``, before.

    Args:
        model: the name or path of a model, or an Engine.
        name: the name under which DSPy knows the model, behind ``offgrid/``; by default its own name or path.
        engine_options: further arguments of Engine, such as ``{"n_ctx": 32768}``. The model is loaded at once with them.
        options: those of ``dspy.LM``, such as ``temperature`` and ``max_tokens``, and of ``Engine.chat``.

    Raises ValueError for a model of another kind, and as Engine does.
    """
    found = checked(model)
    known = name or name_of(found)
    if engine_options:
        found = engine_of(found, engine_options)
    register({} if found == known else {known: found})
    litellm.register_model({f"{PROVIDER}/{known}": _CAPABLE})
    return dspy.LM(f"{PROVIDER}/{known}", **options)


_CAPABLE = {
    "litellm_provider": PROVIDER, "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0,
    "cache_creation_input_token_cost": 0.0, "cache_read_input_token_cost": 0.0,
    "supports_function_calling": True, "supports_response_schema": True, "supports_tool_choice": True,
    "supports_system_messages": True,
}  # fmt: skip


def embedder(
    model: Any,
    *,
    prefix: str = "",
    truncate: bool = False,
    embedder_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return a ``dspy.Embedder``: vectors of length 1, many texts in one decode.

    Args:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        prefix: put before each text, for models that were trained with one, such as "query: ".
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
        options: those of ``dspy.Embedder``, such as ``batch_size`` and ``caching``.

    Raises ValueError for a model of another kind.
    """
    found = checked(model, Embedder)

    def vectors(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        used = embedder_of(found, embedder_options or {})
        return used.embed([prefix + text for text in texts], truncate=truncate)

    return dspy.Embedder(vectors, **options)

"""The limits of an engine's context, its first adapters, and what an engine cannot be made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ContextError
from offgrid_llama.native.enums import VocabType

from .planning.limits import Limits, Trim

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.media.projector import Projector
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

__all__ = ["adapt", "check_deterministic", "check_model", "limits_of"]


def adapt(context: Context, loras: Mapping[LoRA, float] | Iterable[LoRA]) -> None:
    """Let a new context use adapters; it is closed where it cannot."""
    try:
        context.set_loras(loras)
    except BaseException:
        context.close()
        raise


def check_deterministic(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of an Engine with which a request cannot be computed alone."""
    for name in ("draft_model", "cache_dir", "kv_unified"):
        if options.get(name):
            raise ValueError(f"{name} does not go with deterministic=True; leave one of them out")


def check_model(model: Model) -> None:
    """Raise ContextError for a model that does not generate text by decoding alone."""
    if model.has_encoder:
        raise ContextError(f"{model.handle.name} has an encoder; the engine is for models that only decode")
    if model.vocab.type is VocabType.NONE:
        raise ContextError(f"{model.handle.name} has no vocabulary, and the engine generates text")


def limits_of(
    context: Context, n_seq_max: int, n_batch: int, n_guessed: int, projector: Projector | None = None
) -> Limits:
    """Return the limits of a context.

    Args:
        context: the Context, made for ``n_seq_max`` sequences and steps of ``n_batch`` tokens.
        n_seq_max, n_batch: these.
        n_guessed: most tokens that are guessed in a step.
        projector: makes the embeddings of pictures and sounds; None where prompts have none.
    """
    model, memory, n_ctx_seq = context.model, context.memory, context.n_ctx_seq
    trim = Trim.NOTHING if not memory.can_trim else Trim.COMPUTED if model.n_swa else Trim.ANY
    n_outputs = min(context.params.n_outputs_max or n_batch, n_batch)
    shares_cells = context.params.kv_unified and not model.is_recurrent
    # For a token behind a sequence that is longer than its window, llama.cpp drops one that has left the window.
    takes_padding = trim is not Trim.NOTHING and not shares_cells
    return Limits(
        n_seq_max, n_batch, n_ctx_seq, frozenset(model.vocab.eog_tokens()), trim,
        n_cells=context.n_ctx if shares_cells else None,
        n_guessed=0 if trim is Trim.NOTHING else min(n_guessed, n_outputs - n_seq_max), n_outputs=n_outputs,
        pad_limit=min(n_ctx_seq, model.n_swa or n_ctx_seq) if takes_padding else 0,
        has_chunks=projector is not None, has_sections=projector is not None and projector.uses_mrope,
    )  # fmt: skip

"""Infill: generate what stands between a prefix and a suffix, with a model that was trained for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .errors import TokenizeError
from .generate import Generation, generate
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .model import Model
    from .vocab import Vocab

__all__ = ["INFILL_SAMPLERS", "fim_prompt", "infill"]

INFILL_SAMPLERS = ("top_k", "top_p", "infill")
"""The last ends the text where that is likely."""


def fim_prompt(vocab: Vocab, prefix: str, suffix: str, *, spm_infill: bool = False) -> list[int]:
    """Return the token ids that ask for what stands between ``prefix`` and ``suffix``, in the order of llama.cpp's server.

    That is BOS where the model wants it, and: FIM_PRE, prefix, FIM_SUF, suffix, FIM_MID; or with ``spm_infill``: FIM_SUF,
    suffix, FIM_PRE, prefix, FIM_MID, as some models were trained. Nothing in the texts is read as a control token.

    Raises TokenizeError for a model without these tokens.
    """
    pre, suf, mid = vocab.fim_pre, vocab.fim_suf, vocab.fim_mid
    if pre is None or suf is None or mid is None:
        raise TokenizeError(
            f"{vocab._handle.name} cannot fill in the middle: it lacks a token of FIM_PRE, FIM_SUF, FIM_MID. "
            "Take a model that was trained for it, a code model for instance"
        )
    first = [pre, *vocab.tokenize(prefix, add_special=False)]
    second = [suf, *vocab.tokenize(suffix, add_special=False)]
    if spm_infill:
        first, second = second, first
    bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    return [*bos, *first, *second, mid]


def infill(
    model: Model,
    prefix: str,
    suffix: str,
    *,
    spm_infill: bool = False,
    max_tokens: int = 256,
    sampling: SamplingParams | None = None,
    stop: str | Iterable[str] = (),
    n_ctx: int | None = None,
    n_threads: int | None = None,
) -> Generation:
    """Return a Generation of what stands between ``prefix`` and ``suffix``.

    Args:
        model: a Model with fill-in-the-middle tokens.
        prefix, suffix: the texts before and after.
        spm_infill: suffix first; see ``fim_prompt``.
        max_tokens, stop, n_ctx, n_threads: see ``generate``.
        sampling: how tokens are chosen; None is ``top_k``, ``top_p`` and ``infill``, which ends the text where that is
            likely, with SamplingParams' own values.

    Raises:
        TokenizeError: the model has no fill-in-the-middle tokens.
        ContextLengthError: the texts do not fit; nothing is cut off.
    """
    return generate(
        model,
        fim_prompt(model.vocab, prefix, suffix, spm_infill=spm_infill),
        max_tokens=max_tokens,
        sampling=sampling or SamplingParams(samplers=INFILL_SAMPLERS),
        stop=stop,
        n_ctx=n_ctx,
        n_threads=n_threads,
    )

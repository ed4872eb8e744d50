"""RequestOptions: what may be said of a request, for those who hand it on to ``Engine.submit``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..grammar import Grammar
    from ..sampling_params import SamplingParams

__all__ = ["LogitsProcessor", "RequestOptions"]

LogitsProcessor: TypeAlias = "Callable[[Sequence[int], npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]"


class RequestOptions(TypedDict, total=False):
    """The arguments of ``Engine.submit`` besides the prompt, which says what each of them does."""

    n: int
    max_tokens: int
    n_keep: int | None
    priority: int
    sampling: SamplingParams | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    grammar: Grammar | None
    stop: str | Iterable[str]
    logprobs: int | None
    lookup: bool
    draft: bool
    logits_processors: Sequence[LogitsProcessor]
    parse_special: bool
    unparse_special: bool | Collection[int]
    cache_salt: str

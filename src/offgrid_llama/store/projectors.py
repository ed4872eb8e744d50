"""The file of a projector among other files: by its name, as converters and quantizers of models write it."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["AUTO", "projector_among"]

AUTO = "auto"
"""In place of the name of a projector: the one that lies beside the model."""
_NAME = re.compile(r"(?:[^/]*[-_.])?mmproj(?:[-_.][^/]*)?\.gguf", re.IGNORECASE)
_TYPES = ("f16", "bf16", "q8_0", "f32")
"""The types to choose from, the best first: encoders are small, and computed in float16."""


def projector_among(files: Iterable[str], model: str) -> str | None:
    """Return the name of the projector of a model among the names of the files beside it, None if there is none.

    Of several, one whose name has most of the model's in common, by its beginning, and then by its type.
    """
    names = sorted(name for name in files if _NAME.fullmatch(name.rpartition("/")[2]))
    return min(names, key=lambda name: (-_n_common(name, model), _rank(name)), default=None)


def _n_common(name: str, model: str) -> int:
    """Return how many words two names have in common at their beginnings, but for "mmproj"."""
    own, other = _words(name), _words(model)
    return next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))


def _words(name: str) -> list[str]:
    stem = name.rpartition("/")[2].casefold().removesuffix(".gguf")
    return [word for word in re.split(r"[-_.]", stem) if word != "mmproj"]


def _rank(name: str) -> int:
    found = [at for at, kind in enumerate(_TYPES) if re.search(rf"(?:^|[-_.]){kind}(?:[-_.]|$)", name.casefold())]
    return min(found, default=len(_TYPES))

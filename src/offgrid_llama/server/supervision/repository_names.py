"""Repository names: ``ORG/REPO:QUANT``, as llama-server's clients name models, and the files that they may mean (pure)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import PurePath

from offgrid_llama import store
from offgrid_llama.errors import StoreError

__all__ = ["may_mean"]

_NAME = re.compile(r"([a-z0-9][\w.-]*)/([a-z0-9][\w.-]*)(?::([\w.-]+))?", re.ASCII)
_OF_GGUF = re.compile(r"[-_.]gguf$")
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def may_mean(name: str, file: str) -> bool:
    """Return whether a name is one of a repository, and means a model's file; upper and lower case are alike.

    A file of Hugging Face belongs to its repository. Any other file is known by its name, which is that of the repository
    and then that of the quantization.

    Args:
        name: such as ``ggml-org/gemma-3-4b-it-GGUF:Q4_K_M``. Without a quantization, it means each file of Hugging Face that
            belongs to the repository.
        file: a path, or a name of the store, such as ``hf:ORG/REPO/FILE.gguf``.
    """
    found = _NAME.fullmatch(name.casefold())
    if found is None:
        return False
    organization, repository, quantization = found.groups()
    with suppress(StoreError):
        source = store.entry(file).source
        if isinstance(source, store.HubSource):
            is_there = source.repo.casefold() == f"{organization}/{repository}"
            return is_there and (quantization is None or _has(_stem(source.file), quantization))
        file = source.parts[0].member.partition(".part")[0]
    base = _OF_GGUF.sub("", repository)
    return quantization is not None and _stem(file) in {f"{base}{mark}{quantization}" for mark in "-."}


def _stem(file: str) -> str:
    """Return the name of a file without its ending and the number of its part."""
    return _PART.sub("", PurePath(file).name.casefold().removesuffix(".gguf"))


def _has(stem: str, quantization: str) -> bool:
    return re.search(rf"(?:^|[-._]){re.escape(quantization)}(?:[-.]|$)", stem) is not None

"""Adapters of requests: known by names, checked, and in the form in which the scheduler compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from offgrid_llama.errors import AdapterError
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.native.check import real
from offgrid_llama.native.kinds import instance, listed, mapping, path_of

if TYPE_CHECKING:
    import os

    from offgrid_llama.tasks.request_options import LoRAs

__all__ = ["Adapters", "checked_loras", "fingerprints", "named_loras", "of_all_texts", "of_prompt"]

Adapters: TypeAlias = tuple[tuple[LoRA, float], ...]
"""The adapters of a request, with their scales; those with a scale of 0 are left out."""


def named_loras(
    model: Model, adapters: Mapping[str, LoRA | str | os.PathLike[str]]
) -> tuple[dict[str, LoRA], list[LoRA]]:
    """Return the adapters by their names, and those of them that were loaded here from files.

    Raises as LoRA does, and as ``checked_loras``.
    """
    named: dict[str, LoRA] = {}
    loaded: list[LoRA] = []
    try:
        for name, adapter in mapping("adapters", adapters).items():
            instance("each name in adapters", name, str)
            if not isinstance(adapter, LoRA):
                adapter = LoRA(model, path_of(f"adapters[{name!r}]", adapter))  # noqa: PLW2901 - the file is not needed any more
                loaded.append(adapter)
            named[name] = adapter
        for adapter in named.values():
            checked_loras(model, [adapter], {})
    except BaseException:
        for lora in loaded:
            lora.close()
        raise
    return named, loaded


def checked_loras(model: Model, loras: LoRAs, named: Mapping[str, LoRA]) -> Adapters:
    """Return adapters that all requests of an engine may use.

    Args:
        model: the engine's.
        loras: as ``RequestOptions`` has them.
        named: the adapters that have names.

    Raises TypeError or ValueError for those that are none of the model, AdapterError for several that tokens of the prompt
    switch on (aLoRA).
    """
    given = (
        loras.items()
        if isinstance(loras, Mapping)
        else [(each, 1.0) for each in listed("loras", loras, "LoRAs, or names")]
    )
    wanted: dict[LoRA, float] = {}
    for key, scale in given:
        lora = _named(key, named) if isinstance(key, str) else key
        if not isinstance(lora, LoRA):
            raise TypeError(f"loras must be LoRA adapters, or names of an engine's adapters, not {type(lora).__name__}")
        if lora.model is not model:
            raise ValueError(f"{lora.handle.name} is for {lora.model.handle.name}, not {model.handle.name}")
        if lora in wanted:
            raise ValueError(f"loras: {lora.handle.name} is given twice")
        wanted[lora] = real("scale", scale)
    used = tuple((lora, scale) for lora, scale in wanted.items() if scale)
    if len(late := [lora.path.name for lora, _ in used if lora.invocation_tokens]) > 1:
        raise AdapterError(
            f"loras: a request has one adapter that its prompt switches on (aLoRA), not {' and '.join(late)}"
        )
    return used


def _named(name: str, named: Mapping[str, LoRA]) -> LoRA:
    if name not in named:
        known = ", ".join(map(repr, named)) or "none; name them by Engine(adapters={...})"
        raise ValueError(f"loras: there is no adapter {name!r}. Known: {known}")
    return named[name]


def of_all_texts(adapters: Adapters) -> Adapters:
    """Return those that have no tokens which switch them on."""
    return tuple((lora, scale) for lora, scale in adapters if not lora.invocation_tokens)


def of_prompt(adapters: Adapters, prompt: Sequence[int]) -> tuple[Adapters, int | None]:
    """Return the adapters with which a prompt begins, and the position from which on it has all of them.

    An adapter with tokens that switch it on (aLoRA) begins with the last ones that the prompt has; the position is None
    where it has none, or where all begin with the prompt.
    """
    begin = of_all_texts(adapters)
    late = next((lora for lora, _ in adapters if lora.invocation_tokens), None)
    if late is None:
        return begin, None
    marks = late.invocation_tokens
    for pos in range(len(prompt) - len(marks), -1, -1):
        if prompt[pos] == marks[0] and tuple(prompt[pos : pos + len(marks)]) == marks:
            return (begin, pos) if pos else (adapters, None)
    return begin, None


def fingerprints(adapters: Adapters) -> str:
    """Return what tells adapters and their scales apart, in all processes."""
    return str([(lora.fingerprint, scale) for lora, scale in adapters])

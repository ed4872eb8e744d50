"""Adapters of requests: known by names, checked, and in the form in which the scheduler compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from offgrid_llama.errors import AdapterError
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.native.check import real
from offgrid_llama.native.kinds import instance, listed, mapping, path_of

if TYPE_CHECKING:
    import os

    from offgrid_llama.tasks.request_options import LoRAs

__all__ = ["Adapters", "checked_loras", "named_loras", "refuse_late_loras"]

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
        checked_loras(model, dict.fromkeys(named.values(), 1.0), {})
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

    Raises TypeError or ValueError for those that are none of the model, AdapterError as ``refuse_late_loras`` does.
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
    refuse_late_loras(wanted)
    return tuple((lora, scale) for lora, scale in wanted.items() if scale)


def _named(name: str, named: Mapping[str, LoRA]) -> LoRA:
    if name not in named:
        known = ", ".join(map(repr, named)) or "none; name them by Engine(adapters={...})"
        raise ValueError(f"loras: there is no adapter {name!r}. Known: {known}")
    return named[name]


def refuse_late_loras(loras: Iterable[LoRA]) -> None:
    """Raise AdapterError for an adapter that starts in the middle of a text (aLoRA)."""
    for lora in loras:
        if lora.invocation_tokens:
            raise AdapterError(f"{lora.path} works only after certain tokens (aLoRA), not for all requests")

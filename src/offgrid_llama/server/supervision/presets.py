"""Presets: what a request is that names a preset: one to its model, with the preset's defaults."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from offgrid_llama.server.preset_settings import PresetSettings
from offgrid_llama.server.settings import ModelSettings
from offgrid_llama.worker.generation import Conversation, Sampling, Task

from .names import Names
from .specs import template_text

__all__ = ["Preset", "Presets"]

_What = TypeVar("_What", bound=Task)


class Preset:
    """A preset of a model that the server offers.

    Args:
        settings: of the preset.
        model: settings of its model, which has the preset's adapters among its own.
    """

    def __init__(self, settings: PresetSettings, model: ModelSettings) -> None:
        self.name = settings.name
        self.model = model
        self._settings = settings
        numbers = {path: number for number, path in enumerate(model.loras)}
        loras = settings.loras
        self._loras = None if loras is None else {numbers[path]: float(scale) for path, scale in loras.items()}
        found = msgspec.convert(settings.sampling, Sampling, strict=False)
        self._sampling = {name: value for name, value in msgspec.structs.asdict(found).items() if value is not None}

    @cached_property
    def template(self) -> str | None:
        """The text of its chat template; None is the model's. Raises OSError for a file that cannot be read."""
        return None if self._settings.template is None else template_text(self._settings.template)

    def as_model(self) -> ModelSettings:
        """Return settings that describe the preset as a model."""
        model, template = self.model, self._settings.template or self.model.template
        sampling = {**model.sampling, **self._settings.sampling}
        return replace(model, model=model.model or model.name, template=template, sampling=sampling)

    def applied(self, what: _What) -> _What:
        """Return a request with this preset's defaults, where it does not say otherwise."""
        options = what.options
        said = {name: value for name, value in msgspec.structs.asdict(options.sampling).items() if value is not None}
        options = msgspec.structs.replace(
            options, sampling=Sampling(**{**self._sampling, **said}),
            loras=self._loras if options.loras is None else options.loras,
        )  # fmt: skip
        if not isinstance(what, Conversation):
            return msgspec.structs.replace(what, options=options)
        return msgspec.structs.replace(
            what, options=options, template=what.template or self.template, messages=self._messages(what)
        )

    def _messages(self, what: Conversation) -> list[dict[str, Any]]:
        system = self._settings.system
        if system is None or what.before or any(each.get("role") in ("system", "developer") for each in what.messages):
            return what.messages
        return [{"role": "system", "content": system}, *what.messages]


class Presets:
    """The presets of a server.

    Args:
        names: of its models and presets.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._presets: dict[str, Preset] = {}

    def add(self, preset: Preset) -> None:
        """Offer a preset."""
        self._presets[preset.name] = preset

    def find(self, name: str | None) -> Preset | None:
        """Return the preset that a name means, or None."""
        if not self._presets or name is None:
            return None
        return self._presets.get(self._names.registered(name) or "")

    def of(self, model: ModelSettings) -> list[Preset]:
        """Return the presets of a model."""
        return [preset for preset in self._presets.values() if preset.model is model]

    def applied(self, name: str | None, what: _What) -> _What:
        """Return what the worker is asked for, by a request that names a model or a preset."""
        preset = self.find(name)
        return what if preset is None else preset.applied(what)

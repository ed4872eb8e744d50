"""PresetSettings: a further name of a model, with its own defaults for requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .setting_checks import SettingsError, check_loras, check_name, checked

__all__ = ["PresetSettings", "read_presets"]


@dataclass(frozen=True)
class PresetSettings:
    """A name under which a model answers with other defaults. The model is loaded once for all of its names.

    Attributes:
        name: the name that clients use.
        model: the name or an alias of one of the server's models.
        template: a file with a chat template to use instead of the model's, or its text.
        system: the system message of conversations that have none.
        sampling: SamplingParams for requests that do not set them, before those of the model.
        loras: files of LoRA adapters to use instead of the model's, each with its scale; None is the model's.
    """

    name: str
    model: str
    template: str | None = None
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    loras: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        from .sampling_ranges import check_sampling

        check_name(self.name, "presets")
        check_loras(self.loras or {}, f"presets.{self.name}")
        check_sampling(self.sampling, f"presets.{self.name}")


def read_presets(given: object) -> tuple[PresetSettings, ...]:
    """Return presets that are given as such, or as tables. Raises SettingsError."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise SettingsError(f"presets: expected a list, got `{type(given).__name__}`")
    return tuple(map(_preset, given))


def _preset(given: object) -> PresetSettings:
    if isinstance(given, PresetSettings):
        return given
    if not isinstance(given, Mapping) or not all(isinstance(given.get(name), str) for name in ("name", "model")):
        raise SettingsError("presets: each preset must be a table with a name and a model")
    return checked(PresetSettings, given, f"presets.{given['name']}: ")

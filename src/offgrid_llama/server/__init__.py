"""The server: an OpenAI-compatible HTTP API on worker processes, each of which owns one model.

``create_app(settings)`` returns an ASGI app for programs that embed the server; ``run(settings)`` serves it. Nothing here
loads libllama, so a model or a file that crashes it ends one worker, and never the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app
    from .listener import run
    from .preset_settings import PresetSettings
    from .setting_checks import SettingsError
    from .settings import ModelSettings, Settings

__all__ = ["ModelSettings", "PresetSettings", "Settings", "SettingsError", "create_app", "run"]

_WHERE = {
    "create_app": "app", "run": "listener", "Settings": "settings", "ModelSettings": "settings",
    "SettingsError": "setting_checks", "PresetSettings": "preset_settings",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)

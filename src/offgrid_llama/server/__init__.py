"""The server: an OpenAI-compatible HTTP API on worker processes, each of which owns one model.

``create_app(settings)`` is an ASGI app for programs that embed it; ``run(settings)`` serves it. Nothing here loads
libllama: what a model or a file does to its process ends one worker and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app
    from .listener import run
    from .settings import ModelSettings, Settings, SettingsError

__all__ = ["ModelSettings", "Settings", "SettingsError", "create_app", "run"]

_WHERE = {
    "create_app": "app", "run": "listener", "Settings": "settings", "ModelSettings": "settings", "SettingsError": "settings",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)

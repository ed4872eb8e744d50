"""Specs: what a worker is started with, from what was said of its model."""

from __future__ import annotations

from contextlib import suppress
from errno import ENOENT
from pathlib import Path
from typing import Any

from .. import store
from ..errors import StoreError
from .launch import launch_ahead
from .settings import ModelSettings, Settings

__all__ = ["launch_first", "model_created", "worker_spec"]

STREAM_INTERVAL = 1 / 30
"""Seconds within which a stream gets no second event: few see more, and each takes time from the model's cores."""


def worker_spec(settings: ModelSettings, max_queue: int) -> dict[str, Any]:
    """Return the arguments of a worker's Service. Raises StoreError and OSError where there is no such file."""
    file = store.resolve(settings.model or settings.name)
    draft = None if settings.draft is None else str(store.resolve(settings.draft))
    template = None if settings.template is None else Path(settings.template).read_text(encoding="utf-8")
    for path in settings.loras:
        if not Path(path).is_file():
            raise FileNotFoundError(ENOENT, "there is no such adapter", path)
    engine = {
        "n_ctx": settings.n_ctx, "n_seq_max": settings.n_parallel, "n_threads": settings.n_threads, "draft": draft,
        "stream_interval": STREAM_INTERVAL, **settings.engine, "max_queue": max_queue,
    }  # fmt: skip
    model = dict(settings.load)
    if settings.n_gpu_layers is not None:
        model["n_gpu_layers"] = settings.n_gpu_layers
    said = {name: value for name, value in engine.items() if value is not None}
    return {
        "file": str(file),
        "engine": said,
        "model": model,
        "sampling": dict(settings.sampling),
        "template": template,
        "loras": {path: float(scale) for path, scale in settings.loras.items()},
    }


def model_created(settings: ModelSettings) -> int:
    """Return when the file of a model was made, in seconds of Unix; 0 as long as there is none."""
    with suppress(StoreError, OSError):
        return int(store.resolve(settings.model or settings.name, download=False).stat().st_mtime)
    return 0


def launch_first(settings: Settings) -> None:
    """Let the first model that is to be there from the beginning load already, while all else is still imported."""
    model = next((each for each in settings.models if each.preload), None)
    if model is not None:
        with suppress(StoreError, OSError):  # which its load will tell of
            launch_ahead(worker_spec(model, settings.max_queue))

"""Specs: the arguments that a worker starts with, from the settings of its model."""

from __future__ import annotations

from contextlib import suppress
from errno import ENOENT
from pathlib import Path
from typing import Any

from offgrid_llama import store
from offgrid_llama.errors import StoreError
from offgrid_llama.server.settings import ModelSettings, Settings
from offgrid_llama.store.projectors import AUTO

from .launch import launcher

__all__ = ["launch_first", "model_created", "projector_file", "template_text", "worker_spec"]

STREAM_INTERVAL_SECONDS = 1 / 30
"""The shortest time between two events of a stream. Few readers see shorter ones, and each costs the model's cores time."""


def worker_spec(
    settings: ModelSettings, max_queue: int, progress: store.ProgressCallback | None = None
) -> dict[str, Any]:
    """Return the arguments of a worker's Service. Raises StoreError and OSError for a file that does not exist.

    Args:
        settings: of the model.
        max_queue: requests that wait, at most.
        progress: of the download of a model that the store has to fetch.
    """
    file = store.resolve(settings.model or settings.name, progress=progress)
    draft = None if settings.draft is None else str(store.resolve(settings.draft))
    limits = {"image_min_tokens": settings.image_min_tokens, "image_max_tokens": settings.image_max_tokens}
    projector = None
    if settings.projector is not None:
        projector = {"path": str(projector_file(settings)), **limits, "voices": dict(settings.voices)}
    template = None if settings.template is None else template_text(settings.template)
    for kind, paths in (("adapter", settings.loras), ("voice", settings.voices.values())):
        for path in paths:
            if not Path(path).is_file():
                raise FileNotFoundError(ENOENT, f"the {kind} does not exist", path)
    engine = {
        "n_ctx": settings.n_ctx, "n_seq_max": settings.n_parallel, "n_threads": settings.n_threads, "draft_model": draft,
        "stream_interval": STREAM_INTERVAL_SECONDS, **settings.engine, "max_queue": max_queue,
    }  # fmt: skip
    model = dict(settings.load)
    if settings.n_gpu_layers is not None:
        model["n_gpu_layers"] = settings.n_gpu_layers
    return {
        "file": str(file),
        "engine": {name: value for name, value in engine.items() if value is not None},
        "model": model,
        "sampling": {**_sampling(settings), **({"stop": list(settings.stop)} if settings.stop else {})},
        "template": template,
        "projector": projector,
        "loras": {path: float(scale) for path, scale in settings.loras.items()},
    }


def projector_file(settings: ModelSettings, *, download: store.Download = "auto") -> Path:
    """Return the file of a model's projector. Raises StoreError and OSError."""
    if settings.projector == AUTO:
        return store.projector_of(settings.model or settings.name, download=download)
    return store.resolve(settings.projector or "", download=download)


def _sampling(settings: ModelSettings) -> dict[str, Any]:
    """Return SamplingParams. The tokens of biases are texts in TOML, as all names there."""
    found = dict(settings.sampling)
    if "logit_bias" in found:
        found["logit_bias"] = {int(token): float(bias) for token, bias in found["logit_bias"].items()}
    return found


def template_text(given: str) -> str:
    """Return the text of a chat template, which is a file's or given as such."""
    return given if "{" in given else Path(given).read_text(encoding="utf-8")


def model_created(settings: ModelSettings) -> int:
    """Return when the model's file was written, in seconds of Unix time; 0 when there is no file yet."""
    with suppress(StoreError, OSError):
        return int(store.resolve(settings.model or settings.name, download=False).stat().st_mtime)
    return 0


def launch_first(settings: Settings) -> None:
    """Let the first preloaded model load while the rest of the server is imported."""
    model = next((each for each in settings.models if each.preload), None)
    if model is not None:
        with suppress(StoreError, OSError):  # the supervisor's load raises the same error, and reports it
            launcher.launch_ahead(worker_spec(model, settings.max_queue))

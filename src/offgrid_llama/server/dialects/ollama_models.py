"""Ollama's descriptions of models: of all, of one in full, and of those that are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from offgrid_llama.worker.frames import Facts

__all__ = ["OLLAMA_VERSION", "Described", "listed", "running", "shown"]

OLLAMA_VERSION = "0.33.0"
"""The version of Ollama whose API this is. Some clients refuse older ones."""
_FOR_EVER = timedelta(days=292 * 365)
"""The time that Ollama adds to the present for a model that is never unloaded."""
_PARAMETERS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "seed",
)  # fmt: skip
"""Parameters that Ollama knows and a model's settings may give."""


@dataclass(frozen=True)
class Described:
    """The description of a model.

    Attributes:
        name: with its tag.
        modified: when its file was written, in seconds of Unix time; 0 for one that is not there yet.
        size: of its files, in bytes, as far as it is known.
        n_ctx: positions of one request, as far as they are known.
        facts: None where the file is not there, or cannot be read.
        sampling: SamplingParams of requests that do not set them.
    """

    name: str
    modified: int
    size: int
    n_ctx: int
    facts: Facts | None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def listed(models: Sequence[Described]) -> dict[str, Any]:
    """Return the body of the response of ``/api/tags``: the newest model first."""
    return {"models": [_entry(model) for model in sorted(models, key=lambda each: each.modified, reverse=True)]}


def running(models: Sequence[tuple[Described, int, float]]) -> dict[str, Any]:
    """Return the body of the response of ``/api/ps``: the one that stays loaded for longest first.

    Args:
        models: each with the bytes that it takes, and the seconds for which it stays loaded.
    """
    return {
        "models": [
            {
                "name": model.name, "model": model.name, "size": n_bytes, "digest": _digest(model),
                "details": _details(model.facts), "expires_at": _expires_at(seconds), "size_vram": 0,
                "context_length": model.n_ctx,
            }
            for model, n_bytes, seconds in sorted(models, key=lambda each: each[2], reverse=True)
        ]
    }  # fmt: skip


def shown(model: Described) -> dict[str, Any]:
    """Return the body of the response of ``/api/show``."""
    facts = model.facts
    template, parameters = "" if facts is None else facts.template, _parameters(model)
    info = {} if facts is None else {**facts.metadata, "general.parameter_count": facts.n_params}
    return {
        "license": str(info.get("general.license", "")), "modelfile": _model_file(model.name, template, parameters),
        "parameters": parameters, "template": template, "details": _details(facts), "model_info": info,
        "capabilities": _capabilities(facts), "modified_at": _time(model.modified),
    }  # fmt: skip


def _entry(model: Described) -> dict[str, Any]:
    facts = model.facts
    details = _details(facts)
    if facts is not None:
        details |= {"context_length": facts.n_ctx_train, "embedding_length": facts.n_embd}
    return {
        "name": model.name, "model": model.name, "modified_at": _time(model.modified), "size": model.size,
        "digest": _digest(model), "details": details, "capabilities": _capabilities(facts),
    }  # fmt: skip


def _digest(model: Described) -> str:
    return "" if model.facts is None else model.facts.digest


def _details(facts: Facts | None) -> dict[str, Any]:
    family = "" if facts is None else facts.architecture
    return {
        "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
        "parameter_size": "" if facts is None else _short(facts.n_params),
        "quantization_level": "" if facts is None else facts.file_type or "unknown",
    }  # fmt: skip


def _capabilities(facts: Facts | None) -> list[str]:
    """Return what a model can do. Any model that answers conversations can be told of tools."""
    if facts is None:
        return []
    can = {
        "completion": facts.generates, "embedding": facts.embeds, "insert": facts.fills, "tools": facts.chats,
        "thinking": facts.reasons, "vision": facts.sees, "audio": facts.hears,
    }  # fmt: skip
    return [name for name, does in can.items() if does]


def _parameters(model: Described) -> str:
    """Return lines of a name and a value. Clients read the size of the context from there."""
    found = {name: model.sampling[name] for name in _PARAMETERS if name in model.sampling}
    return "\n".join(f"{name:<30} {json.dumps(value)}" for name, value in {"num_ctx": model.n_ctx, **found}.items())


def _model_file(name: str, template: str, parameters: str) -> str:
    lines = [f"FROM {name}", *(f"PARAMETER {line}" for line in parameters.splitlines())]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n"


def _short(n: int) -> str:
    """Return a number of parameters as Ollama writes it: 134.52M, 7.2B."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 2)):
        if n >= size:
            return f"{n / size:.{digits}f}{unit}"
    return str(n)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _expires_at(seconds: float) -> str:
    left = min(timedelta(seconds=seconds), _FOR_EVER) if seconds < _FOR_EVER.total_seconds() else _FOR_EVER
    return (datetime.now(timezone.utc) + left).isoformat().replace("+00:00", "Z")

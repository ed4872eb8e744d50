"""``offgrid-llama doctor``: the build, the devices, the paths, and one decode as proof."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import offgrid_llama
from offgrid_llama import store
from offgrid_llama.errors import OffgridLlamaError, StoreError, UnknownModelError

from . import output
from .exits import FAILURE, explain
from .options import Json, Verbose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["doctor"]

_EXTRAS = {
    "chat": ("jinja2", "llguidance"), "cli": ("typer", "rich"), "hub": ("huggingface-hub",),
    "server": ("fastapi", "uvicorn", "msgspec"),
}  # fmt: skip
PROOF_PROMPT = "The capital of France is"
"""The prompt of the proof, which any model can continue."""
PROOF_TOKENS = 16
"""Tokens that the proof generates: enough for a speed."""


def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|FILE", help="The model of the proof.", show_default="the default"),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check this installation. The exit code is 1 if a part of it does not work."""
    report = {
        "versions": _versions(),
        "build": _build(),
        "devices": _try(_devices),
        "cpu": _try(_cpu),
        "models": _try(_models),
        "extras": _extras(),
        "proof": _try(lambda: _proof(model)),
    }
    failed = any(isinstance(part, dict) and "error" in part for part in report.values())
    if json:
        output.json_out({"ok": not failed, **report})
    else:
        output.out(*_text(report), "", "a part does not work, see above" if failed else "all is well")
    if failed:
        raise typer.Exit(FAILURE)


def _try(check: Callable[[], Any]) -> Any:
    """Return the result of a check, or its error: one broken part must not hide the others."""
    try:
        return check()
    except Exception as error:
        logging.getLogger("offgrid_llama.cli").debug("the check failed", exc_info=True)
        return {"error": output.one_line(explain(error)[1])}


def _versions() -> dict[str, str]:
    from offgrid_llama.native import backend

    info = backend.build_info()
    commit = f" ({info.commit[:12]})" if info.commit else ""
    return {
        "offgrid_llama": offgrid_llama.__version__,
        "llama.cpp": f"{info.llama_cpp}{commit}",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
    }


def _build() -> dict[str, Any]:
    from offgrid_llama.native import backend

    info = backend.build_info()
    return {"compiler": info.compiler, "flags": list(info.flags), "commit": info.commit}


def _devices() -> list[dict[str, Any]]:
    from offgrid_llama.native import backend

    return [
        {
            "name": device.name, "type": device.type, "backend": device.backend, "description": device.description,
            "memory_free": device.memory_free, "memory_total": device.memory_total,
        }
        for device in backend.devices()
    ]  # fmt: skip


def _cpu() -> dict[str, Any]:
    from offgrid_llama.native import backend

    named = backend.features().get("CPU", {})
    return {
        "features": sorted(name for name, value in named.items() if value != "0"),
        "threads": backend.default_threads(),
    }


def _models() -> dict[str, Any]:
    cached = {name: {"path": str(model.path), "size": model.size} for name, model in store.cached().items()}
    return {"cache_dir": str(store.cache_dir()), "default": store.DEFAULT_MODEL, "cached": cached}


def _extras() -> dict[str, dict[str, Any]]:
    found = {}
    for extra, names in _EXTRAS.items():
        there: dict[str, str | None] = {}
        for name in names:
            try:
                there[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                there[name] = None
        cure = None if all(there.values()) else f"pip install 'offgrid-llama[{extra}]'"
        found[extra] = {"packages": there, "cure": cure}
    return found


def _proof(model: str | None) -> dict[str, Any]:
    """Generate a few tokens. Without a model in the cache nothing is downloaded; the result names the command for it."""
    from offgrid_llama.model.model import Model
    from offgrid_llama.tasks.generate import generate

    try:
        path = store.resolve(model or store.DEFAULT_MODEL, download=False)
    except StoreError as error:
        if isinstance(error, UnknownModelError):
            raise
        name = model or store.DEFAULT_MODEL
        return {"skipped": f"{name} is not in the cache", "cure": f"offgrid-llama pull {name}"}
    with Model(path) as loaded:
        generation = generate(loaded, PROOF_PROMPT, max_tokens=PROOF_TOKENS, temperature=0)
        text = generation.text
    if not generation.tokens:
        raise OffgridLlamaError(f"{path.name} gave no token for {PROOF_PROMPT!r}")
    return {
        "model": str(path),
        "prompt": PROOF_PROMPT,
        "text": text,
        "tokens": len(generation.tokens),
        "tokens_per_second": generation.tokens_per_second,
    }


Row = tuple[str, str]


def _text(report: dict[str, Any]) -> list[str]:
    rows: list[Row] = list(report["versions"].items())
    rows.append(("built with", report["build"]["compiler"]))
    rows += [("", flag) for flag in report["build"]["flags"]]
    rows += _device_rows(report["devices"])
    rows += _cpu_rows(report["cpu"])
    rows += _model_rows(report["models"])
    rows += _extra_rows(report["extras"])
    rows += _proof_rows(report["proof"])
    return output.columns(rows)


def _device_rows(devices: list[dict[str, Any]] | dict[str, str]) -> Iterator[Row]:
    if isinstance(devices, dict):
        yield "devices", _broken(devices)
        return
    for device in devices:
        free, total = output.mib(device["memory_free"]), output.mib(device["memory_total"])
        yield device["type"], f"{device['name']}, {device['description']}: {free} free of {total}"


def _cpu_rows(cpu: dict[str, Any]) -> Iterator[Row]:
    if "error" in cpu:
        yield "CPU features", _broken(cpu)
        return
    yield "CPU features", " ".join(cpu["features"])
    yield "threads", str(cpu["threads"])


def _model_rows(models: dict[str, Any]) -> Iterator[Row]:
    if "error" in models:
        yield "models in", _broken(models)
        return
    yield "models in", models["cache_dir"]
    for name, model in models["cached"].items():
        yield "", f"{name} ({output.human(model['size'])})"
    if not models["cached"]:
        yield "", "(none yet)"


def _extra_rows(extras: dict[str, dict[str, Any]]) -> Iterator[Row]:
    for extra, found in extras.items():
        packages = ", ".join(f"{name} {version or 'is missing'}" for name, version in found["packages"].items())
        yield f"extra {extra}", packages + (f": {found['cure']}" if found["cure"] else "")


def _proof_rows(proof: dict[str, Any]) -> Iterator[Row]:
    if "error" in proof:
        yield "proof", _broken(proof)
    elif "skipped" in proof:
        yield "proof", f"not tried: {proof['skipped']}; get it with {proof['cure']}"
    else:
        speed = f"{proof['tokens']} tokens, {proof['tokens_per_second']:.1f} tokens/s"
        yield "proof", f"{Path(proof['model']).name}: {speed}"
        yield "", f"{proof['prompt']}{proof['text']}"


def _broken(part: dict[str, str]) -> str:
    return f"BROKEN: {part['error']}"

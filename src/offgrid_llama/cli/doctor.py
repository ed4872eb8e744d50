"""``offgrid-llama doctor``: what was built, what it runs on, where things lie, and one decode as proof."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import offgrid_llama

from .. import store
from ..errors import OffgridLlamaError, StoreError, UnknownModelError
from . import output
from .exits import FAILURE, explain
from .options import Json, Verbose

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["doctor"]

_EXTRAS = {
    "chat": ("jinja2", "llguidance"), "cli": ("typer", "rich"), "hub": ("huggingface-hub",),
    "server": ("fastapi", "uvicorn", "msgspec"),
}  # fmt: skip
_PROOF = "The capital of France is"
_PROOF_TOKENS = 16


def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|FILE", help="What to decode with.", show_default="the default"),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check this installation; the exit code is 1 if something in it does not work."""
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
        output.out(*_text(report), "", "something does not work, see above" if failed else "all is well")
    if failed:
        raise typer.Exit(FAILURE)


def _try(check: Callable[[], Any]) -> Any:
    """Return what a check finds, or the error that it met: one broken part must not hide the others."""
    try:
        return check()
    except Exception as error:
        logging.getLogger("offgrid_llama.cli").debug("the check failed", exc_info=True)
        return {"error": output.one_line(explain(error)[1])}


def _versions() -> dict[str, str]:
    from .. import backend

    info = backend.build_info()
    commit = f" ({info.commit[:12]})" if info.commit else ""
    return {
        "offgrid_llama": offgrid_llama.__version__,
        "llama.cpp": f"{info.llama_cpp}{commit}",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
    }


def _build() -> dict[str, Any]:
    from .. import backend

    info = backend.build_info()
    return {"compiler": info.compiler, "flags": list(info.flags), "commit": info.commit}


def _devices() -> list[dict[str, Any]]:
    from .. import backend

    return [
        {
            "name": device.name, "type": device.type, "backend": device.backend, "description": device.description,
            "memory_free": device.memory_free, "memory_total": device.memory_total,
        }
        for device in backend.devices()
    ]  # fmt: skip


def _cpu() -> dict[str, Any]:
    from .. import backend

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
    """Decode a few tokens. Nothing is downloaded for it: without a model in the cache it says how to get one."""
    from ..generate import generate
    from ..model import Model

    try:
        path = store.resolve(model or store.DEFAULT_MODEL, download=False)
    except StoreError as error:
        if isinstance(error, UnknownModelError):
            raise
        name = model or store.DEFAULT_MODEL
        return {"skipped": f"{name} is not in the cache", "cure": f"offgrid-llama pull {name}"}
    with Model(path) as loaded:
        generation = generate(loaded, _PROOF, max_tokens=_PROOF_TOKENS, temperature=0)
        text = generation.text
    if not generation.tokens:
        raise OffgridLlamaError(f"{path.name} gave no token for {_PROOF!r}")
    return {
        "model": str(path),
        "prompt": _PROOF,
        "text": text,
        "tokens": len(generation.tokens),
        "tokens_per_second": generation.tokens_per_second,
    }


def _text(report: dict[str, Any]) -> list[str]:
    build, cpu, models, proof = report["build"], report["cpu"], report["models"], report["proof"]
    rows: list[tuple[str, str]] = list(report["versions"].items())
    rows.append(("built with", build["compiler"]))
    rows += [("", flag) for flag in build["flags"]]
    if isinstance(report["devices"], dict):
        rows.append(("devices", _broken(report["devices"])))
    else:
        for device in report["devices"]:
            free, total = (output.mib(device[key]) for key in ("memory_free", "memory_total"))
            what = f"{device['name']}, {device['description']}: {free} free of {total}"
            rows.append((device["type"], what))
    if "error" in cpu:
        rows.append(("CPU features", _broken(cpu)))
    else:
        rows += [("CPU features", " ".join(cpu["features"])), ("threads", str(cpu["threads"]))]
    if "error" in models:
        rows.append(("models in", _broken(models)))
    else:
        rows.append(("models in", models["cache_dir"]))
        rows += [("", f"{name} ({output.human(model['size'])})") for name, model in models["cached"].items()]
        if not models["cached"]:
            rows.append(("", "(none yet)"))
    for extra, found in report["extras"].items():
        packages = ", ".join(f"{name} {version or 'is missing'}" for name, version in found["packages"].items())
        rows.append((f"extra {extra}", packages + (f": {found['cure']}" if found["cure"] else "")))
    if "error" in proof:
        rows.append(("proof", _broken(proof)))
    elif "skipped" in proof:
        rows.append(("proof", f"not tried: {proof['skipped']}; get it with {proof['cure']}"))
    else:
        speed = f"{proof['tokens']} tokens, {proof['tokens_per_second']:.1f} tokens/s"
        rows += [("proof", f"{Path(proof['model']).name}: {speed}"), ("", f"{proof['prompt']}{proof['text']}")]
    return output.columns(rows)


def _broken(part: dict[str, str]) -> str:
    return f"BROKEN: {part['error']}"

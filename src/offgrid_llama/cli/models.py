"""``offgrid-llama models``, ``pull`` and ``remove``: the known models, and those in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store
from offgrid_llama.errors import UnknownModelError

from . import output
from .options import Json, Verbose

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["models", "pull", "remove"]

CatalogName = Annotated[
    str, typer.Argument(metavar="NAME", help="A name that `models` lists, or hf:ORG/REPO/FILE.gguf.")
]


def models(json: Json = False, verbose: Verbose = False) -> None:
    """List the known models, and those in the cache."""
    listed = _listed()
    if json:
        output.json_out({"cache_dir": str(store.cache_dir()), "default": store.DEFAULT_MODEL, "models": listed})
        return
    rows = [["NAME", "SIZE", "TYPE", "CONTEXT", "LICENCE", "FROM", "CACHED"]]
    for model in listed:
        context = model["context_length"]
        rows.append(
            [
                model["name"], output.human(model["size"]), model["quantization"] or "?", f"{context:,}" if context else "?",
                model["license"], model["from"], "yes" if model["path"] else "no",
            ]
        )  # fmt: skip
    output.out(
        *output.columns(rows, right=(1, 3)), "", f"The default is {store.DEFAULT_MODEL}. Cache: {store.cache_dir()}"
    )


def _listed() -> list[dict[str, Any]]:
    cached = store.cached()
    listed = []
    for entry in store.catalog():
        there = cached.pop(entry.name, None)
        listed.append(
            {
                "name": entry.name, "aliases": list(entry.aliases), "description": entry.description,
                "size": entry.size, "quantization": entry.quantization, "context_length": entry.context_length,
                "chat": entry.chat, "license": entry.license, "license_url": entry.license_url,
                "from": f"hf:{entry.source.repo}" if isinstance(entry.source, store.HubSource) else "PyPI",
                "source": str(entry.source), "path": str(there.path) if there else None,
            }
        )  # fmt: skip
    for name, model in cached.items():  # pulled as hf:...
        listed.append(
            {
                "name": name, "aliases": [], "description": "", "size": model.size, "quantization": None,
                "context_length": None, "chat": None, "license": "?", "license_url": None,
                "from": "/".join(name.split("/")[:2]), "source": name, "path": str(model.path),
            }
        )  # fmt: skip
    return listed


def pull(name: CatalogName = store.DEFAULT_MODEL, json: Json = False, verbose: Verbose = False) -> None:
    """Download a model unless the cache has it, and print its path."""
    with output.download(name) as progress:
        path: Path = store.pull(name, progress=progress)
    if json:
        output.json_out({"name": name, "path": str(path), "size": path.stat().st_size})
    else:
        output.out(str(path))


def remove(name: CatalogName, json: Json = False, verbose: Verbose = False) -> None:
    """Delete a model from the cache, with the remains of a broken download of it."""
    freed = store.remove(name)
    if not freed:
        raise UnknownModelError(f"{name} is not in the cache {store.cache_dir()}")
    if json:
        output.json_out({"name": name, "freed": freed})
    else:
        output.out(f"removed {name}: {output.human(freed)}")

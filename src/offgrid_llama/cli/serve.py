"""``offgrid-llama serve``: the OpenAI-compatible server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import store
from . import output
from .exits import UsageError
from .options import Verbose

if TYPE_CHECKING:
    from ..server import ModelSettings, Settings

__all__ = ["serve"]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL ...]",
            show_default=False,
            help=f"Names or files, or NAME=MODEL; without any the settings' or {store.DEFAULT_MODEL}.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 is any that is free.", show_default="11611")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings, as TOML.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="Another name of a model; may be repeated.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys, one on each line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen for other machines without a key.")] = False,
    n_ctx: Annotated[int | None, typer.Option(min=1, help="Positions of all requests of a model together.")] = None,
    n_parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="Requests of a model that run at once.", show_default="8")
    ] = None,
    n_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")] = None,
    n_gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU.", show_default="as fit")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the settings and the files, print them, and end.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Serve models to OpenAI's clients, on 127.0.0.1:11611 unless told otherwise."""
    missing = [name for name in ("fastapi", "msgspec", "prometheus_client", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(f"the server needs {', '.join(missing)}: pip install 'offgrid-llama[server]'")
    from ..server import Settings, SettingsError
    from ..server.specs import launch_first

    try:
        settings = Settings.load(
            config, host=host, port=port, models=models or None, insecure=insecure or None, log_format=log_format,
            api_key_file=None if api_key_file is None else str(api_key_file),
        )  # fmt: skip
        settings = _completed(
            settings, alias or [], n_ctx=n_ctx, n_parallel=n_parallel, n_threads=n_threads, n_gpu_layers=n_gpu_layers
        )
    except SettingsError as error:
        raise UsageError(str(error)) from error
    for model in settings.models:
        if model.preload or check:
            with output.download(model.model or model.name) as progress:
                store.resolve(model.model or model.name, progress=progress)
    if check:
        _print(settings)
        return
    launch_first(settings)  # it loads while the server is imported
    from ..server import run

    run(settings, on_listening=lambda url: output.err(f"listening on {url}"))


def _completed(settings: Settings, aliases: list[str], **given: int | None) -> Settings:
    """Return settings with the default model where there is none, aliases, and what is said of all models."""
    from dataclasses import replace

    from ..server import ModelSettings

    models = list(settings.models) or [ModelSettings(store.DEFAULT_MODEL)]
    said = {name: value for name, value in given.items() if value is not None}
    models = [replace(model, **said) for model in models]  # type: ignore[arg-type]
    for alias in aliases:
        name, _, target = alias.partition("=")
        at = next((i for i, model in enumerate(models) if target in (model.name, *model.aliases)), None)
        if at is None:
            raise UsageError(f"--alias {alias}: there is no model {target!r}; write NAME=MODEL")
        models[at] = replace(models[at], aliases=(*models[at].aliases, name))
    if not any(model.preload for model in models):
        models[0] = replace(models[0], preload=True)
    return replace(settings, models=tuple(models), api_keys=settings.api_keys, api_key_file=None)


def _print(settings: Settings) -> None:
    key = f"{len(settings.api_keys)} of them" if settings.api_keys else "none: whoever reaches it may ask"
    lines = [f"listens on      {settings.host}:{settings.port}", f"keys            {key}"]
    lines += [f"model           {_line(model)}" for model in settings.models]
    output.out("\n".join([*lines, "all is well"]))


def _line(model: ModelSettings) -> str:
    from ..server.specs import worker_spec

    file = Path(worker_spec(model, 0)["file"])
    names = f" (also {', '.join(model.aliases)})" if model.aliases else ""
    return f"{model.name}{names}: {file}, {file.stat().st_size:,} bytes{', loaded at once' if model.preload else ''}"

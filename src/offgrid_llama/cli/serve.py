"""``offgrid-llama serve``: the OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store

from . import output
from .exits import UsageError
from .options import Verbose

if TYPE_CHECKING:
    from offgrid_llama.server import ModelSettings, PresetSettings, Settings

__all__ = ["fetch", "require_packages", "serve"]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL ...]",
            show_default=False,
            help=f"Names or files, or NAME=MODEL. The default is those of the settings, or {store.DEFAULT_MODEL}.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port to listen on; 0 is any free one.", show_default="11611"),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file of settings.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="Another name of a model; may be repeated.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of API keys, one on each line.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen for other machines without a key.")] = False,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions of a model's context, for all of its requests.")
    ] = None,
    n_parallel: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Up to this number of a model's requests run at a time.", show_default="8"),
    ] = None,
    n_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a model.")] = None,
    n_gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU.", show_default="as many as fit")] = None,
    projector: Annotated[
        str | None,
        typer.Option(
            "--projector", "--mmproj", metavar="FILE", help="What sees, hears or speaks for the model; a file or name."
        ),
    ] = None,
    image_min_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a picture, at least.")] = None,
    image_max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a picture, at most.")] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A sound that a model speaks like, by its name; may be repeated."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="Format of the log: text or json.", show_default="text")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the settings and the files, print them, and exit.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Serve models to OpenAI's clients, by default on 127.0.0.1:11611."""
    require_packages()
    from offgrid_llama.server import Settings, SettingsError
    from offgrid_llama.server.supervision.specs import launch_first

    for_all_models = _ForAllModels(
        n_ctx=n_ctx, n_parallel=n_parallel, n_threads=n_threads, n_gpu_layers=n_gpu_layers, projector=projector,
        image_min_tokens=image_min_tokens, image_max_tokens=image_max_tokens, voices=_voices(voice),
    )  # fmt: skip
    try:
        settings = Settings.load(
            config, host=host, port=port, models=models or None, insecure=insecure or None, log_format=log_format,
            api_key_file=None if api_key_file is None else str(api_key_file),
        )  # fmt: skip
        settings = _completed(settings, alias or [], for_all_models)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    fetch(model for model in settings.models if model.preload or check)
    if check:
        _print(settings)
        return
    launch_first(settings)  # its worker loads the model while the server is imported
    from offgrid_llama.server import run

    run(settings, on_listening=lambda url: output.err(f"listening on {url}"))


@dataclass(frozen=True)
class _ForAllModels:
    """Options of the command that replace a setting of every model; None leaves the setting."""

    n_ctx: int | None
    n_parallel: int | None
    n_threads: int | None
    n_gpu_layers: int | None
    projector: str | None
    image_min_tokens: int | None
    image_max_tokens: int | None
    voices: dict[str, str] | None

    def applied(self, model: ModelSettings) -> ModelSettings:
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        return replace(model, **given)


def _voices(given: list[str] | None) -> dict[str, str] | None:
    voices = {}
    for each in given or []:
        name, _, file = each.partition("=")
        if not name or not file:
            raise UsageError(f"--voice {each}: write NAME=FILE")
        voices[name] = file
    return voices or None


def require_packages() -> None:
    """Raise UsageError that says how to install what the server needs, where it is missing."""
    missing = [name for name in ("fastapi", "msgspec", "prometheus_client", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(f"the server needs {', '.join(missing)}: pip install 'offgrid-llama[server]'")


def fetch(models: Iterable[ModelSettings]) -> None:
    """Download the models that the cache does not have."""
    for model in models:
        with output.download(model.model or model.name) as progress:
            store.resolve(model.model or model.name, progress=progress)


def _completed(settings: Settings, aliases: Iterable[str], for_all_models: _ForAllModels) -> Settings:
    """Return settings with the default model where they have none, the aliases, and the options for all models."""
    from offgrid_llama.server import ModelSettings

    models = [for_all_models.applied(model) for model in settings.models or [ModelSettings(store.DEFAULT_MODEL)]]
    if for_all_models.projector is not None and len(models) > 1:
        raise UsageError("--projector is for one model; with several, a file of settings gives each its own")
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
    key = f"{len(settings.api_keys)} of them" if settings.api_keys else "none: anyone who can reach the port may use it"
    lines = [f"listens on      {settings.host}:{settings.port}", f"keys            {key}"]
    lines += [f"model           {_line(model)}" for model in settings.models]
    lines += [f"preset          {_preset_line(preset)}" for preset in settings.presets]
    output.out("\n".join([*lines, "all is well"]))


def _preset_line(preset: PresetSettings) -> str:
    from offgrid_llama.server.supervision.specs import template_text

    if preset.template is not None:
        template_text(preset.template)  # raises OSError for a file that cannot be read
    return f"{preset.name}: of {preset.model}"


def _line(model: ModelSettings) -> str:
    from offgrid_llama.server.supervision.specs import worker_spec

    spec = worker_spec(model, 0)
    file, projector = Path(spec["file"]), spec["projector"]
    names = f" (also {', '.join(model.aliases)})" if model.aliases else ""
    seeing = "" if projector is None else f", with {projector['path']}"
    start = ", loaded at the start" if model.preload else ""
    return f"{model.name}{names}: {file}, {file.stat().st_size:,} bytes{seeing}{start}"

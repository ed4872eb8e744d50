"""``offgrid-llama llama-server``: the server in llama-server's manner: its flags, and its API on its port."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from offgrid_llama import store

from . import output
from .exits import UsageError
from .llama_server_flags import FLAGS, read
from .llama_server_templates import template_text
from .serve import require_packages

if TYPE_CHECKING:
    from offgrid_llama.server import ModelSettings, Settings

__all__ = ["llama_server", "settings_of"]

DEFAULT_PORT = 8080
DEFAULT_N_PARALLEL = 4
GRACE_SECONDS = 3.0
MIB = 2**20
UNLIMITED_CACHE_BYTES = 2**62
_SPEC_TYPES = (
    "none",
    "draft",
    "draft-simple",
    "ngram-simple",
    "ngram-cache",
    "ngram-mod",
    "ngram-map-k",
    "ngram-map-k4v",
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/-]")


def llama_server(context: typer.Context) -> None:
    """Serve a model in the manner of llama.cpp's llama-server, with its flags, on 127.0.0.1:8080.

    Without a model it serves those of the cache, which requests name.
    """
    arguments = context.args
    if any(word in ("-h", "--help", "--usage") for word in arguments):
        output.out(_help())
        return
    require_packages()
    from offgrid_llama.server import SettingsError
    from offgrid_llama.server.supervision.specs import launch_first

    try:
        settings = settings_of(read(arguments, os.environ))
    except SettingsError as error:
        raise UsageError(str(error)) from error
    launch_first(settings)
    from offgrid_llama.server import run

    run(settings, on_listening=lambda url: output.err(f"server is listening on {url}"))


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Return the settings of the server for what a command line of llama-server sets.

    Raises UsageError for what this server cannot do, and SettingsError for settings that are not possible.
    """
    from offgrid_llama.server import Settings
    from offgrid_llama.server.llama_server import LlamaServer

    file = _file(given)
    models = _cached_models(given) if file is None else (_model(given, file),)
    manner = _manner(given)
    host = os.environ.get("AIP_HTTP_HOST", given.get("host", "127.0.0.1"))
    gcp = os.environ.get("AIP_MODE") == "PREDICTION"
    is_open = not all(each in ("127.0.0.1", "localhost", "::1") for each in host.split(","))
    seconds = given.get("timeout")
    more: dict[str, Any] = {} if seconds is None else {"body_seconds": seconds, "write_seconds": seconds}
    if given.get("idle_seconds", -1) > 0:
        more["idle_seconds"] = given["idle_seconds"]
    return Settings(
        host=host, port=int(os.environ["AIP_HTTP_PORT"]) if gcp and "AIP_HTTP_PORT" in os.environ else _port(given),
        models=models, api_keys=tuple(given.get("api_keys", ())), insecure=is_open,
        allowed_hosts=("*",) if is_open else (), cors_origins=_origins(given), any_model=file is not None,
        ignore_unknown=True, page=given.get("page", True), grace_seconds=GRACE_SECONDS,
        llama_server=LlamaServer(
            model_path=str(file or ""), router=file is None, seeded=given.get("seed", -1) != -1, gcp=gcp, **manner
        ), **more,
    )  # fmt: skip


def _manner(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the command line sets of LlamaServer. Raises UsageError for a folder that is not there."""
    from offgrid_llama.server.llama_server import LlamaServer

    own = {each.name for each in fields(LlamaServer)}
    manner: dict[str, Any] = {name: value for name, value in _below("server", given).items() if name in own}
    if manner.get("slot_save_path") is not None and not Path(manner["slot_save_path"]).is_dir():
        raise UsageError(f"--slot-save-path: {manner['slot_save_path']} is no folder")
    return manner


def _origins(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the origins of pages that may use the server: any where a key is needed, as that lets no stranger in."""
    return tuple(given.get("cors_origins", ("*",) if given.get("api_keys") else ()))


def _port(given: Mapping[str, Any]) -> int:
    port: int = given.get("port", DEFAULT_PORT)
    return port


def _cached_models(given: Mapping[str, Any]) -> tuple[ModelSettings, ...]:
    """Return the models of the cache, which are loaded when they are asked for: llama-server's router."""
    return tuple(_settings(given, [name], name, preload=False) for name in sorted(store.cached()))


def _file(given: Mapping[str, Any]) -> Path | None:
    """Return the model's file, fetched if it is a repository's; None where no model is named."""
    if "model" in given:
        file = Path(given["model"])
        if not file.is_file():
            raise UsageError(f"-m: there is no file {file}")
        return file
    if "hf_repo" not in given:
        return None
    repository, _, quantization = given["hf_repo"].partition(":")
    name = f"hf:{repository}/{given['hf_file']}" if "hf_file" in given else f"hf:{repository}"
    if quantization and "hf_file" not in given:
        name += f":{quantization}"
    if given.get("offline"):
        return store.resolve(name, download=False)
    with output.download(name) as progress:
        return store.resolve(name, progress=progress)


def _model(given: Mapping[str, Any], file: Path) -> ModelSettings:
    """Return the settings of the one model, which is loaded at the start."""
    names = sorted(given.get("aliases", ())) or [_NOT_IN_NAMES.sub("-", file.name.removesuffix(".gguf"))[:128]]
    return _settings(given, names, str(file), preload=True)


def _settings(given: Mapping[str, Any], names: Sequence[str], model: str, *, preload: bool) -> ModelSettings:
    from offgrid_llama.server import ModelSettings

    loras = dict(given.get("loras", ()))
    if given.get("lora_init_without_apply"):
        loras = dict.fromkeys(loras, 0.0)
    n_threads, n_layers = given.get("n_threads", -1), given.get("n_gpu_layers", "auto")
    return ModelSettings(
        names[0], model=model, aliases=tuple(names[1:]), template=_template(given),
        n_ctx=given.get("n_ctx") or None, n_parallel=_n_parallel(given), n_threads=n_threads if n_threads > 0 else None,
        n_gpu_layers=n_layers if isinstance(n_layers, int) and n_layers >= 0 else None, draft=_draft(given),
        projector=given.get("projector"), image_min_tokens=given.get("image_min_tokens"),
        image_max_tokens=given.get("image_max_tokens"), loras=loras, sampling=_sampling(given), engine=_engine(given),
        load=_load(given), preload=preload,
    )  # fmt: skip


def _load(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of Model."""
    load = _below("load", given)
    if "mmap" in given or "mlock" in given:
        mmap, mlock = given.get("mmap", True), given.get("mlock", False)
        load["load_mode"] = {
            (True, True): "mmap_mlock", (True, False): "mmap", (False, True): "mlock", (False, False): "none",
        }[mmap, mlock]  # fmt: skip
    return load


def _n_parallel(given: Mapping[str, Any]) -> int:
    n: int = given.get("n_parallel", DEFAULT_N_PARALLEL)
    return n if n > 0 else DEFAULT_N_PARALLEL


def _engine(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of Engine. Each token of a stream has its own event, as llama-server has it."""
    engine = {"stream_interval": 0.0, **_below("engine", given)}
    if "batch" in given or "ubatch" in given:
        wanted = min(value for value in (given.get("batch"), given.get("ubatch")) if value)
        engine["n_batch"] = max(wanted, _n_parallel(given) + 1)
    if "cache_ram" in given:
        engine["cache_bytes"] = given["cache_ram"] * MIB if given["cache_ram"] >= 0 else UNLIMITED_CACHE_BYTES
    if engine.get("n_threads_batch", 1) < 1:
        del engine["n_threads_batch"]
    return engine


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    from offgrid_llama.server.dialects.llama_server_options import sampler_names

    sampling = _below("sampling", given)
    if given.get("seed", -1) != -1:
        sampling["seed"] = given["seed"] % (2**32 - 1)
    if given.get("adaptive_target", -1) >= 0:
        sampling["adaptive_target"] = given["adaptive_target"]
    if "samplers" in given:
        sampling["samplers"] = sampler_names(given["samplers"])
    return sampling


def _draft(given: Mapping[str, Any]) -> str | None:
    kind = given.get("spec_type")
    if kind is not None and kind not in _SPEC_TYPES:
        raise UsageError(f"--spec-type {kind}: this server has {', '.join(_SPEC_TYPES)}")
    draft: str | None = given.get("draft")
    return None if kind == "none" else draft


def _template(given: Mapping[str, Any]) -> str | None:
    """Return the file of the chat template, or a name or text that the model's worker reads as such."""
    if "chat_template_file" in given:
        return str(Path(given["chat_template_file"]).resolve())
    return template_text(given["chat_template"]) if "chat_template" in given else None


def _below(room: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of one room, such as "sampling.", without its name."""
    return {name.partition(".")[2]: value for name, value in given.items() if name.startswith(f"{room}.")}


def _help() -> str:
    lines: Sequence[str] = [
        f"  {', '.join(flag.names)}{'' if flag.read is None else ' VALUE'}"
        f"{f'   (LLAMA_ARG_{flag.variable})' if flag.variable else ''}"
        for flag in FLAGS
        if flag.names
    ]
    return "\n".join(["offgrid-llama llama-server takes these flags of llama-server:", "", *lines])
